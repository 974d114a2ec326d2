//! SASL by PLAIN and SCRAM (RFC 5802, 7677), without I/O.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::digest::KeyInit;
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256, Sha512};

use super::{Given, Refused, invalid, not_ours};

/// The properties of SASL that are understood here.
const SASL: &[&str] = &[
    "sasl.mechanism",
    "sasl.mechanisms",
    "sasl.password",
    "sasl.username",
];

/// Kafka takes no fewer; more than the most would let a broker burn our time.
const ITERATIONS: std::ops::RangeInclusive<u32> = 4096..=1_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mechanism {
    Plain,
    Scram256,
    Scram512,
}

impl Mechanism {
    pub(super) const ALL: [Self; 3] = [Self::Plain, Self::Scram256, Self::Scram512];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::Scram256 => "SCRAM-SHA-256",
            Self::Scram512 => "SCRAM-SHA-512",
        }
    }
}

/// Who we are.
#[derive(Clone)]
pub(super) struct Credentials {
    pub(super) mechanism: Mechanism,
    pub(super) user: String,
    pub(super) password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.mechanism.name())
    }
}

impl Credentials {
    pub(super) fn of(given: Given<'_>) -> Result<Self, Refused> {
        let name = match ["sasl.mechanism", "sasl.mechanisms"].map(|key| given.get(key)) {
            // two names of one property: which of them counts is librdkafka's to say
            [Some(one), Some(other)] if one != other => return Err(not_ours("sasl.mechanisms")),
            // GSSAPI where there is none
            [one, other] => one.or(other).unwrap_or_default(),
        };
        let mechanism = Mechanism::ALL.into_iter().find(|m| m.name() == name);
        let mechanism = mechanism.ok_or_else(|| not_ours("sasl.mechanism"))?;
        given.only("sasl.", SASL)?;
        let needed = |key| {
            let value = given.get(key).filter(|value| !value.is_empty());
            let missing = || invalid(key, format!("is missing: {} needs it", mechanism.name()));
            value.map(str::to_owned).ok_or_else(missing)
        };
        Ok(Self {
            mechanism,
            user: needed("sasl.username")?,
            password: needed("sasl.password")?,
        })
    }
}

/// What is said by SASL, without saying it: the bytes to send and to be answered. The broker is who it should be, and we are
/// known to it, once [`Conversation::is_done`], and not before.
pub(in crate::fetcher) struct Conversation {
    pub(super) credentials: Credentials,
    pub(super) nonce: String,
    pub(super) step: Step,
}

pub(super) enum Step {
    First,
    Second,
    /// The proof is sent; with the broker's own proof as it must be.
    Last(Vec<u8>),
    Done,
    Failed,
}

impl Conversation {
    /// One that is to begin.
    pub(super) fn new(credentials: Credentials) -> Self {
        Self {
            credentials,
            nonce: STANDARD.encode(rand::random::<[u8; 24]>()),
            step: Step::First,
        }
    }

    /// The mechanism's name, for the request before the first.
    pub(in crate::fetcher) fn mechanism(&self) -> &'static str {
        self.credentials.mechanism.name()
    }

    /// What to send first.
    pub(in crate::fetcher) fn first(&mut self) -> Vec<u8> {
        self.step = Step::Second;
        let who = &self.credentials;
        let text = match who.mechanism {
            Mechanism::Plain => format!("\0{}\0{}", who.user, who.password),
            Mechanism::Scram256 | Mechanism::Scram512 => format!("n,,{}", self.bare()),
        };
        text.into_bytes()
    }

    /// What to send after an answer of the broker; none when all is said. An error ends the conversation.
    pub(in crate::fetcher) fn next(&mut self, server: &[u8]) -> Result<Option<Vec<u8>>, String> {
        let step = std::mem::replace(&mut self.step, Step::Failed);
        let (answer, step) = match (step, self.credentials.mechanism) {
            (Step::Second, Mechanism::Plain) => (None, Step::Done),
            (Step::Second, Mechanism::Scram256) => self.prove::<Hmac<Sha256>, Sha256>(server)?,
            (Step::Second, Mechanism::Scram512) => self.prove::<Hmac<Sha512>, Sha512>(server)?,
            (Step::Last(expected), _) => {
                let text = readable(server)?;
                let value = text.split(',').next().and_then(|v| v.strip_prefix("v="));
                let theirs = value.and_then(|v| STANDARD.decode(v).ok());
                if !theirs.is_some_and(|theirs| same(&theirs, &expected)) {
                    let why = "the broker did not prove that it knows the password: it is not who it should be";
                    return Err(why.into());
                }
                (None, Step::Done)
            }
            _ => return Err("the broker said more than it was asked".into()),
        };
        self.step = step;
        Ok(answer)
    }

    /// Whether the broker knows us, and with SCRAM we know it.
    pub(in crate::fetcher) fn is_done(&self) -> bool {
        matches!(self.step, Step::Done)
    }

    /// The client's first message as both sides sign it (RFC 5802, section 5.1).
    fn bare(&self) -> String {
        let user = &self.credentials.user;
        let user = user.replace('=', "=3D").replace(',', "=2C");
        format!("n={user},r={}", self.nonce)
    }

    /// The client's last message, and what the broker must answer (RFC 5802, section 3).
    fn prove<M: Mac + KeyInit + Clone, D: Digest>(
        &self,
        server: &[u8],
    ) -> Result<(Option<Vec<u8>>, Step), String> {
        let text = readable(server)?;
        let mut parts = text.split(',');
        let mut part = |name| parts.next().and_then(|part| part.strip_prefix(name));
        let (Some(nonce), Some(salt), Some(iterations)) = (part("r="), part("s="), part("i="))
        else {
            return Err("the broker's first SCRAM message is not as it should be".into());
        };
        let added = nonce.strip_prefix(&self.nonce).unwrap_or_default();
        if added.is_empty() || !added.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("the broker's SCRAM nonce is not built on ours".into());
        }
        let salt = STANDARD.decode(salt).unwrap_or_default();
        let iterations = iterations.parse().ok().filter(|i| ITERATIONS.contains(i));
        let (false, Some(iterations)) = (salt.is_empty(), iterations) else {
            let (least, most) = ITERATIONS.into_inner();
            return Err(format!(
                "the broker's SCRAM needs a salt, and from {least} to {most} iterations"
            ));
        };
        let salted = salted::<M>(self.credentials.password.as_bytes(), &salt, iterations);
        let client_key = hmac::<M>(&salted, b"Client Key");
        let unproven = format!("c=biws,r={nonce}");
        let signed = format!("{},{text},{unproven}", self.bare());
        let signature = hmac::<M>(&D::digest(&client_key), signed.as_bytes());
        let mut proof = client_key;
        xor(&mut proof, &signature);
        let last = format!("{unproven},p={}", STANDARD.encode(proof));
        let expected = hmac::<M>(&hmac::<M>(&salted, b"Server Key"), signed.as_bytes());
        Ok((Some(last.into_bytes()), Step::Last(expected)))
    }
}

/// A message of the broker as text; what it says to be an error is one.
fn readable(server: &[u8]) -> Result<&str, String> {
    let text = std::str::from_utf8(server).map_err(|_| "the broker's SCRAM message is no text")?;
    match text.strip_prefix("e=") {
        None => Ok(text),
        Some(error) => {
            let is_plain = |c: &char| c.is_ascii_graphic();
            let error: String = error.chars().filter(is_plain).take(64).collect();
            let advice = "look at sasl.mechanism, sasl.username and sasl.password";
            Err(format!("{error}: {advice}"))
        }
    }
}

fn keyed<M: Mac + KeyInit>(key: &[u8]) -> M {
    <M as KeyInit>::new_from_slice(key).expect("HMAC takes keys of any length")
}

fn hmac<M: Mac + KeyInit>(key: &[u8], message: &[u8]) -> Vec<u8> {
    let code = keyed::<M>(key).chain_update(message).finalize();
    code.into_bytes().to_vec()
}

/// `Hi` of RFC 5802: PBKDF2 with one block.
fn salted<M: Mac + KeyInit + Clone>(password: &[u8], salt: &[u8], iterations: u32) -> Vec<u8> {
    let keyed: M = keyed(password);
    let mut block = hmac::<M>(password, &[salt, &1_u32.to_be_bytes()].concat());
    let mut sum = block.clone();
    for _ in 1..iterations {
        let next = keyed.clone().chain_update(&block).finalize();
        block.copy_from_slice(&next.into_bytes());
        xor(&mut sum, &block);
    }
    sum
}

fn xor(sum: &mut [u8], bytes: &[u8]) {
    for (sum, byte) in sum.iter_mut().zip(bytes) {
        *sum ^= byte;
    }
}

/// Compares in a time that does not tell where they differ.
fn same(one: &[u8], other: &[u8]) -> bool {
    let differing = one.iter().zip(other).fold(0, |all, (a, b)| all | (a ^ b));
    one.len() == other.len() && std::hint::black_box(differing) == 0
}
