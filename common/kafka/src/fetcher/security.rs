//! From the user's librdkafka properties to a secured connection: TLS by rustls, and SASL by PLAIN and SCRAM. What only
//! librdkafka can do is refused by the property's name, never left out. Secrets are in no message and no debug output.
//!
//! ```text
//!   properties ──of──► Security ──wrap──► Stream, its handshake done ──conversation──► bytes of SaslAuthenticate, until done
//! ```

mod sasl;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tls_tests;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, ClientConnection, InconsistentKeys,
    RootCertStore, StreamOwned,
};
use rustls_native_certs::{load_certs_from_paths, load_native_certs};

use self::sasl::{Conversation, Credentials};
use crate::LogError;

/// The properties of TLS that are understood here.
const TLS: &[&str] = &[
    "enable.ssl.certificate.verification",
    "ssl.ca.location",
    "ssl.ca.pem",
    "ssl.certificate.location",
    "ssl.certificate.pem",
    "ssl.endpoint.identification.algorithm",
    "ssl.key.location",
    "ssl.key.password",
    "ssl.key.pem",
];

/// Where systems keep their authorities, in the order in which librdkafka looks: one client must not trust whom the other
/// does not, and `SSL_CERT_FILE` is for catalogs.
const AUTHORITIES: &[&str] = &[
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/etc/ssl/certs/ca-certificates.crt",
    "/usr/local/share/certs/ca-root-nss.crt",
];

const THEIRS: &str = "the broker's certificate must be of an authority in ssl.ca.location, for the host name by which the \
                      broker is called, and not expired";
const STRICTER: &str = "the broker's certificate must name its host as subjectAltName (CN is not looked at), be of X.509 \
                        version 3, signed with SHA-2, and not itself be an authority's";
const OURS: &str = "the broker wants another certificate of this client, or one at all: look at ssl.certificate.location \
                    and ssl.key.location";
const NOTHING_SHARED: &str = "broker and client have no TLS version or cipher in common (1.3, or 1.2 with ECDHE), or the \
                              broker wants a certificate of this client: look at ssl.certificate.location";

/// Why properties give no [`Security`].
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    /// Only librdkafka can do what this property asks for.
    #[error("Kafka property {key}: only librdkafka does this")]
    NotOurs {
        /// The property.
        key: String,
    },
    /// A property that cannot work with any client.
    #[error(transparent)]
    Invalid(LogError),
}

fn not_ours(key: &str) -> Refused {
    Refused::NotOurs { key: key.into() }
}

fn invalid(key: &str, detail: impl Into<String>) -> Refused {
    Refused::Invalid(LogError::Invalid {
        what: format!("Kafka property {key}"),
        detail: detail.into(),
    })
}

/// How connections are secured.
#[derive(Clone)]
pub(super) struct Security {
    tls: Option<Arc<ClientConfig>>,
    sasl: Option<Credentials>,
}

impl fmt::Debug for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Security")
            .field("tls", &self.tls.is_some())
            .field("sasl", &self.sasl)
            .finish()
    }
}

impl Security {
    /// What the properties ask for; files are read here, and never again.
    pub(super) fn of(properties: &BTreeMap<String, String>) -> Result<Self, Refused> {
        let given = Given(properties);
        let protocol = given.get("security.protocol").unwrap_or_default();
        let (tls, sasl) = match protocol.trim_end().to_ascii_lowercase().as_str() {
            "" | "plaintext" => (false, false),
            "ssl" => (true, false),
            "sasl_plaintext" => (false, true),
            "sasl_ssl" => (true, true),
            _ => {
                let allowed = "must be one of plaintext, ssl, sasl_plaintext, sasl_ssl";
                return Err(invalid("security.protocol", allowed));
            }
        };
        Ok(Self {
            tls: tls.then(|| client_config(given)).transpose()?,
            sasl: sasl.then(|| Credentials::of(given)).transpose()?,
        })
    }

    /// The connection to `host`, after the TLS handshake where there is one. A handshake takes no longer than the socket's
    /// read timeout, or twice that with a broker that sends byte by byte.
    pub(super) fn wrap(&self, mut tcp: TcpStream, host: &str) -> Result<Stream, LogError> {
        let Some(config) = &self.tls else {
            return Ok(Stream::Plain(tcp));
        };
        let what = format!("TLS handshake with {host}");
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let connection = ServerName::try_from(bare.unwrap_or(host).to_owned())
            .map_err(|_| rustls::Error::UnsupportedNameType)
            .and_then(|name| ClientConnection::new(Arc::clone(config), name));
        let Ok(mut connection) = connection else {
            let detail = "this is no host name that a certificate could be for".into();
            return Err(LogError::Invalid { what, detail });
        };
        match handshake(&mut connection, &mut tcp) {
            Ok(()) => Ok(Stream::Tls(Box::new(StreamOwned::new(connection, tcp)))),
            Err((error, heard)) => Err(failed(what, &error, heard)),
        }
    }

    /// Whether connections are TLS.
    pub(super) fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// What to say to a broker that asks who we are; none without SASL.
    pub(super) fn conversation(&self) -> Option<Conversation> {
        self.sasl.clone().map(Conversation::new)
    }
}

/// The user's properties, read as librdkafka reads them.
#[derive(Clone, Copy)]
struct Given<'a>(&'a BTreeMap<String, String>);

impl<'a> Given<'a> {
    /// Without white space at its beginning, which librdkafka drops, of passwords too.
    fn get(self, key: &str) -> Option<&'a str> {
        let white = [' ', '\t', '\n', '\x0b', '\x0c', '\r'];
        Some(self.0.get(key)?.trim_start_matches(white))
    }

    /// Refuses properties of a family that are not among those understood.
    fn only(self, family: &str, understood: &[&str]) -> Result<(), Refused> {
        let of_family = |key: &&String| key.trim_start_matches("enable.").starts_with(family);
        let mut keys = self.0.keys().filter(of_family);
        match keys.find(|key| !understood.contains(&key.as_str())) {
            Some(key) => Err(not_ours(key)),
            None => Ok(()),
        }
    }

    /// Refuses every value but these, in any case.
    fn fixed(self, key: &str, values: &[&str]) -> Result<(), Refused> {
        let is_fixed = |value: &str| values.iter().any(|v| v.eq_ignore_ascii_case(value));
        match self.get(key) {
            Some(value) if !is_fixed(value.trim_end()) => Err(not_ours(key)),
            _ => Ok(()),
        }
    }

    /// The PEM text that a property holds.
    fn literal(self, key: String) -> Option<Pem> {
        let bytes = self.get(&key)?.into();
        let place = "the text".into();
        Some(Pem { key, place, bytes })
    }

    /// The PEM text of `family`.pem or of the file named by `family`.location; as with librdkafka the former wins.
    fn pem(self, family: &str) -> Result<Option<Pem>, Refused> {
        if let Some(pem) = self.literal(format!("{family}.pem")) {
            return Ok(Some(pem));
        }
        let key = format!("{family}.location");
        let read = |path| Pem::read(&key, Path::new(path));
        self.get(&key).map(read).transpose()
    }
}

fn client_config(given: Given<'_>) -> Result<Arc<ClientConfig>, Refused> {
    given.only("ssl.", TLS)?;
    given.fixed("enable.ssl.certificate.verification", &["true", "t", "1"])?;
    given.fixed("ssl.endpoint.identification.algorithm", &["https"])?;
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("ring has ciphers of both versions")
        .with_root_certificates(authorities(given)?);
    let mut config = match identity(given, &provider)? {
        Some(identity) => {
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity)))
        }
        None => builder.with_no_client_auth(),
    };
    // connections last long, and the broker is to see our certificate at each
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// Whose certificates are accepted.
fn authorities(given: Given<'_>) -> Result<RootCertStore, Refused> {
    const KEY: &str = "ssl.ca.location";
    let location = given.get(KEY).filter(|path| *path != "probe");
    let files = match location.map(Path::new) {
        Some(path) if path.is_dir() => files_of(path).map_err(|e| unreadable(KEY, path, &e))?,
        path => path.into_iter().map(Path::to_owned).collect(),
    };
    let literal = given.literal("ssl.ca.pem".into());
    let mut found = Vec::new();
    for file in &files {
        found.extend(Pem::read(KEY, file)?.certificates()?);
    }
    match (location, &literal) {
        (_, Some(pem)) => found.extend(pem.certificates()?),
        (Some(_), None) => {}
        (None, None) => found = of_this_system(),
    }
    let mut roots = RootCertStore::empty();
    if roots.add_parsable_certificates(found).0 > 0 {
        return Ok(roots);
    }
    let wanted = "certificate of an authority";
    Err(match (location, &literal) {
        (Some(path), _) => none_in(KEY, path, wanted),
        (None, Some(pem)) => none_in(&pem.key, &pem.place, wanted),
        (None, None) => invalid(KEY, format!("this system has no {wanted}: name a PEM file")),
    })
}

/// The authorities that this system trusts.
fn of_this_system() -> Vec<CertificateDer<'static>> {
    let load = |place: &&str| load_certs_from_paths(Some(Path::new(place)), None).certs;
    let found = AUTHORITIES.iter().map(load).find(|certs| !certs.is_empty());
    found.unwrap_or_else(|| load_native_certs().certs)
}

/// The files of a folder of authorities: those with hashed names, which are all that OpenSSL looks at; without any such
/// `*.pem` and `*.crt`.
fn files_of(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let (mut hashed, mut named) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        // links may lead nowhere
        if !path.is_file() {
            continue;
        }
        let part = |part: Option<&OsStr>| part.and_then(OsStr::to_str).map(str::to_owned);
        let stem = part(path.file_stem()).unwrap_or_default();
        let end = part(path.extension()).unwrap_or_default();
        let is_hash = stem.len() == 8 && stem.bytes().all(|b| b.is_ascii_hexdigit());
        if is_hash && end.parse::<u16>().is_ok() {
            hashed.push(path);
        } else if ["pem", "crt"].contains(&end.as_str()) {
            named.push(path);
        }
    }
    Ok(if hashed.is_empty() { named } else { hashed })
}

/// The certificate that we show to a broker that wants one.
fn identity(given: Given<'_>, provider: &CryptoProvider) -> Result<Option<CertifiedKey>, Refused> {
    let (chain, key) = match (given.pem("ssl.certificate")?, given.pem("ssl.key")?) {
        (None, None) => return Ok(None),
        // librdkafka connects, and shows none
        (Some(chain), None) => return Err(not_ours(&chain.key)),
        (None, Some(key)) => {
            let detail = "a key without a certificate: name that by ssl.certificate.location";
            return Err(invalid(&key.key, detail));
        }
        (Some(chain), Some(key)) => (chain, key),
    };
    let certificates = chain.certificates()?;
    if certificates.is_empty() {
        return Err(none_in(&chain.key, &chain.place, "certificate"));
    }
    if key.has("BEGIN ENCRYPTED PRIVATE KEY") || key.has("Proc-Type: 4,ENCRYPTED") {
        return Err(match given.get("ssl.key.password") {
            Some(_) => not_ours("ssl.key.password"),
            None => invalid(&key.key, "the key is encrypted: set ssl.key.password"),
        });
    }
    let Ok(der) = PrivateKeyDer::from_pem_slice(&key.bytes) else {
        return Err(none_in(&key.key, &key.place, "private key"));
    };
    // OpenSSL may know kinds and lengths of keys that ring does not
    let signer = provider.key_provider.load_private_key(der);
    let identity = CertifiedKey::new(certificates, signer.map_err(|_| not_ours(&key.key))?);
    match identity.keys_match() {
        Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
            let (place, other) = (&key.place, &chain.key);
            let detail = format!("{place} does not fit the certificate of {other}");
            Err(invalid(&key.key, detail))
        }
        // what cannot be compared is for the broker to judge
        _ => Ok(Some(identity)),
    }
}

/// PEM text with the property that gave it.
struct Pem {
    key: String,
    place: String,
    bytes: Vec<u8>,
}

impl Pem {
    fn read(key: &str, path: &Path) -> Result<Self, Refused> {
        let bytes = fs::read(path).map_err(|error| unreadable(key, path, &error))?;
        let (key, place) = (key.to_owned(), path.display().to_string());
        Ok(Self { key, place, bytes })
    }

    fn has(&self, words: &str) -> bool {
        let mut windows = self.bytes.windows(words.len());
        windows.any(|window| window == words.as_bytes())
    }

    /// All certificates in it; there may be none.
    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, Refused> {
        // a form of OpenSSL's own
        if self.has("BEGIN TRUSTED CERTIFICATE") {
            return Err(not_ours(&self.key));
        }
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.bytes).collect();
        // the parser's error may hold lines of the text
        let damaged = || format!("{} is damaged: it is no whole PEM", self.place);
        found.map_err(|_| invalid(&self.key, damaged()))
    }
}

fn unreadable(key: &str, path: &Path, error: &io::Error) -> Refused {
    let advice = "name a PEM file that everlog may read";
    let path = path.display();
    invalid(key, format!("cannot read {path}: {error}: {advice}"))
}

fn none_in(key: &str, place: &str, wanted: &str) -> Refused {
    let advice = "it must be in PEM form";
    invalid(
        key,
        format!("{place} holds no {wanted} that can be used: {advice}"),
    )
}

/// Drives the handshake to its end. An error comes with whether the broker had said anything before.
fn handshake(
    connection: &mut ClientConnection,
    tcp: &mut TcpStream,
) -> Result<(), (io::Error, bool)> {
    let mut heard = false;
    let limit = tcp.read_timeout().map_err(|error| (error, heard))?;
    let began = Instant::now();
    while connection.is_handshaking() || connection.wants_write() {
        let writes = connection.wants_write();
        let moved = if writes {
            connection.write_tls(tcp)
        } else if limit.is_some_and(|limit| began.elapsed() >= limit) {
            Err(ErrorKind::TimedOut.into())
        } else {
            connection.read_tls(tcp)
        };
        match moved {
            Ok(0) => return Err((ErrorKind::UnexpectedEof.into(), heard)),
            Ok(_) => heard |= !writes,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err((last_words(connection, tcp, error), heard)),
        }
        if let Err(error) = connection.process_new_packets() {
            // the broker is told why, as far as it still listens
            let _ = connection.write_tls(tcp);
            return Err((io::Error::new(ErrorKind::InvalidData, error), heard));
        }
    }
    Ok(())
}

/// A broker that closes the door says why before: that is worth more than a write that finds it closed.
fn last_words(
    connection: &mut ClientConnection,
    tcp: &mut TcpStream,
    error: io::Error,
) -> io::Error {
    if is_closed(&error)
        && connection.read_tls(tcp).is_ok()
        && let Err(why) = connection.process_new_packets()
    {
        return io::Error::new(ErrorKind::InvalidData, why);
    }
    error
}

fn is_closed(error: &io::Error) -> bool {
    use ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    let kind = error.kind();
    matches!(
        kind,
        BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof
    )
}

/// Why there was no handshake.
fn failed(what: String, error: &io::Error, heard: bool) -> LogError {
    if let Some(detail) = refusal(error) {
        return LogError::Denied { what, detail };
    }
    let is_garbage = matches!(tls_error(error), Some(rustls::Error::InvalidMessage(_)));
    let detail = match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => "no answer in time".into(),
        _ if is_garbage || !heard && is_closed(error) => {
            format!("does the broker speak TLS at this port? ({error})")
        }
        _ => error.to_string(),
    };
    LogError::Unavailable { what, detail }
}

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// Whether an error of a connection tells of a door that stays shut, and then what to look at: for [`LogError::Denied`].
/// Ask it of any error, since with TLS 1.3 a broker refuses our certificate only after the handshake.
pub(super) fn refusal(error: &io::Error) -> Option<String> {
    use AlertDescription as Alert;
    let error = tls_error(error)?;
    let advice = match error {
        rustls::Error::InvalidCertificate(why) if is_stricter(why) => STRICTER,
        rustls::Error::InvalidCertificate(_) => THEIRS,
        rustls::Error::PeerIncompatible(_) => NOTHING_SHARED,
        rustls::Error::AlertReceived(alert) => match alert {
            Alert::AccessDenied
            | Alert::BadCertificate
            | Alert::CertificateExpired
            | Alert::CertificateRequired
            | Alert::CertificateRevoked
            | Alert::CertificateUnknown
            | Alert::NoCertificate
            | Alert::UnknownCA
            | Alert::UnsupportedCertificate => OURS,
            Alert::HandshakeFailure | Alert::InsufficientSecurity | Alert::ProtocolVersion => {
                NOTHING_SHARED
            }
            _ => return None,
        },
        _ => return None,
    };
    // some errors list all that would have been taken
    let error: String = error.to_string().chars().take(240).collect();
    Some(format!("{advice}: {error}"))
}

/// Whether a connection failed by what rustls does not do and OpenSSL might.
pub(super) fn is_stricter_than_openssl(error: &LogError) -> bool {
    let starts = |detail: &str| detail.starts_with(STRICTER) || detail.starts_with(NOTHING_SHARED);
    matches!(error, LogError::Denied { detail, .. } if starts(detail))
}

/// Whether OpenSSL might have taken the certificate.
fn is_stricter(why: &CertificateError) -> bool {
    use CertificateError as Error;
    match why {
        Error::NotValidForNameContext { presented, .. } => presented.is_empty(),
        Error::BadEncoding
        | Error::UnhandledCriticalExtension
        | Error::UnsupportedSignatureAlgorithmContext { .. }
        | Error::UnsupportedSignatureAlgorithmForPublicKeyContext { .. }
        | Error::Other(_) => true,
        _ => false,
    }
}

/// A connection, plain or in TLS. What is written may wait in it until it is flushed.
#[derive(Debug)]
pub(super) enum Stream {
    /// As it is.
    Plain(TcpStream),
    /// In TLS.
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Stream {
    /// The socket, for timeouts and to shut it down.
    pub(super) fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => &tls.sock,
        }
    }

    fn heard_out<T>(&mut self, done: io::Result<T>) -> io::Result<T> {
        match self {
            Self::Plain(_) => done,
            Self::Tls(tls) => done.map_err(|e| last_words(&mut tls.conn, &mut tls.sock, e)),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let done = match self {
            Self::Plain(tcp) => tcp.read(buffer),
            Self::Tls(tls) => tls.read(buffer),
        };
        self.heard_out(done)
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let done = match self {
            Self::Plain(tcp) => tcp.write(bytes),
            Self::Tls(tls) => tls.write(bytes),
        };
        self.heard_out(done)
    }

    fn flush(&mut self) -> io::Result<()> {
        let done = match self {
            Self::Plain(tcp) => tcp.flush(),
            Self::Tls(tls) => tls.flush(),
        };
        self.heard_out(done)
    }
}
