//! SASL conversations, properties and files, right and wrong.

use proptest::prelude::*;

use super::sasl::{Mechanism, Step};
use super::*;

/// An authority's.
const CA: (&str, &str) = (
    "ssl.ca.pem",
    "-----BEGIN CERTIFICATE-----\n\
     MIIBdDCCARugAwIBAgIUXf/6gEmjWsPcvhYjZlNMxW6sr1EwCgYIKoZIzj0EAwIw\n\
     DzENMAsGA1UEAwwEdGVzdDAgFw0yNjExMjIxMzU4NTdaGA8yMTI2MTAyOTEzNTg1\n\
     N1owDzENMAsGA1UEAwwEdGVzdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABM6S\n\
     JbiKvA6Mv/UR7ESss8SvTnn/H71IsoQNZ5CYqyy2dnfWmpSTNJuRkqtxvbSxJdT8\n\
     Zz1E3a00ym6EAMGNdVqjUzBRMB0GA1UdDgQWBBR0uCO6Uhbf09ZziiNxRvQLEbZV\n\
     jDAfBgNVHSMEGDAWgBR0uCO6Uhbf09ZziiNxRvQLEbZVjDAPBgNVHRMBAf8EBTAD\n\
     AQH/MAoGCCqGSM49BAMCA0cAMEQCIBOXuR5L+OaCZ66UkLUszU+ivDtc2lBHgwHp\n\
     Lx/dBoeCAiBhcJq1mNf3+eLGH5OUo3mP5FxOcjyTcCr+9WQAKVQCSw==\n\
     -----END CERTIFICATE-----",
);

fn properties(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    pairs.iter().map(owned).collect()
}

fn of(protocol: &str, pairs: &[(&str, &str)]) -> Result<Security, Refused> {
    let mut all = properties(pairs);
    all.insert("security.protocol".into(), protocol.into());
    Security::of(&all)
}

fn talk(mechanism: Mechanism, user: &str, password: &str) -> Conversation {
    Conversation {
        credentials: Credentials {
            mechanism,
            user: user.into(),
            password: password.into(),
        },
        nonce: "rOprNGfwEbeRWgbNEkqO".into(),
        step: Step::First,
    }
}

/// The example of RFC 7677, section 3.
const FIRST: &str = "n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
const CHALLENGE: &str =
    "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
const PROOF: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                     p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
const VERDICT: &str = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";

/// The conversation of RFC 7677 up to its last message.
fn proven() -> Conversation {
    let mut talk = talk(Mechanism::Scram256, "user", "pencil");
    assert_eq!(talk.first(), FIRST.as_bytes());
    let answer = talk.next(CHALLENGE.as_bytes()).unwrap();
    assert_eq!(answer.as_deref(), Some(PROOF.as_bytes()));
    assert!(!talk.is_done());
    talk
}

#[test]
fn scram_speaks_as_its_specification_does() {
    let mut talk = proven();
    assert_eq!(talk.mechanism(), "SCRAM-SHA-256");
    assert_eq!(talk.next(VERDICT.as_bytes()), Ok(None));
    assert!(talk.is_done());
    talk.next(VERDICT.as_bytes()).unwrap_err();
    assert!(!talk.is_done());
}

#[test]
fn scram_sha_512_escapes_names_and_takes_passwords_as_they_are() {
    let mut talk = talk(Mechanism::Scram512, "a=b,c", "grün = p,w");
    assert_eq!(talk.first(), b"n,,n=a=3Db=2Cc,r=rOprNGfwEbeRWgbNEkqO");
    let challenge = "r=rOprNGfwEbeRWgbNEkqO3rfcNHYJY1ZVvWVs7j,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=8192";
    // by an implementation of another language
    let proof = "c=biws,r=rOprNGfwEbeRWgbNEkqO3rfcNHYJY1ZVvWVs7j,p=WivngyTGHacDRvF4BwYkwYdPLRK/JqdDsHJn5dEKUFzN25/\
                 FK08ogB7AlH3+XizfwLqe3ZXBKatOhcKA02tysw==";
    let verdict = "v=6HEuOEHA3ss9AbJEjKln0wx9fsy5SN+0MdwwcfRwJHM2rwxTOG/sg6sadwxQuNTa7hxBBwwu8AJHX/b7kmvSlw==,x=1";
    assert_eq!(talk.next(challenge.as_bytes()), Ok(Some(proof.into())));
    assert_eq!(talk.next(verdict.as_bytes()), Ok(None));
    assert!(talk.is_done());
}

#[test]
fn plain_sends_name_and_password_and_is_done_when_answered() {
    let mut talk = talk(Mechanism::Plain, "alice", "pässword");
    assert_eq!(talk.first(), "\0alice\0pässword".as_bytes());
    assert!(!talk.is_done());
    assert_eq!(talk.next(b""), Ok(None));
    assert!(talk.is_done());
    assert_eq!(talk.mechanism(), "PLAIN");
}

#[test]
fn a_broker_that_does_not_know_the_password_is_not_believed() {
    let wrong = VERDICT.replace("6rri", "6rrj");
    let cut = VERDICT.split_at(VERDICT.len() - 4).0;
    for verdict in [&wrong, cut, "", "v=", "v=!", "m=x", "x=1,v=6rri", CHALLENGE] {
        let mut talk = proven();
        let why = talk.next(verdict.as_bytes()).unwrap_err();
        assert!(why.contains("did not prove"), "{why}");
        assert!(!talk.is_done());
        talk.next(VERDICT.as_bytes()).unwrap_err();
    }
    let why = proven().next(b"e=invalid-proof\n\x07").unwrap_err();
    assert!(
        why.starts_with("invalid-proof: look at") && why.contains("sasl.password"),
        "{why}"
    );
    proven().next(&[0xff, 0xfe]).unwrap_err();
}

#[test]
fn a_first_message_that_is_cut_or_asks_for_the_wrong_thing_is_refused() {
    let next = |text: &str| {
        let mut talk = talk(Mechanism::Scram256, "user", "pencil");
        talk.first();
        talk.next(text.as_bytes())
    };
    for end in 0..CHALLENGE.len() {
        next(CHALLENGE.split_at(end).0).unwrap_err();
    }
    for (from, to) in [
        ("r=rOpr", "r=rOps"),
        ("%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0", ""),
        ("%hv", "\n"),
        ("r=", "m=x,r="),
        ("s=W22Z", "s=W2"),
        ("W22ZaJ0SNY7soEsUEjb6gQ==", ""),
        ("i=4096", "i=4095"),
        ("i=4096", "i=1000001"),
        ("i=4096", "i=99999999999999999999"),
        ("i=4096", "i=-4096"),
        ("i=4096", "i=4096x"),
        (",i=", ",s=,i="),
        ("r=", "e=other-error,r="),
    ] {
        next(&CHALLENGE.replace(from, to)).unwrap_err();
    }
    let mut early = talk(Mechanism::Scram256, "user", "pencil");
    early.next(CHALLENGE.as_bytes()).unwrap_err();
}

proptest! {
    #[test]
    fn no_message_of_a_broker_is_believed_or_ends_us(
        text in "(r=|s=|i=|v=|e=|,|=|rOprNGfwEbeRWgbNEkqO|W22ZaJ0SNY7soEsUEjb6gQ==|[0-9]{1,3}|\\PC){0,12}",
        bytes in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        for message in [text.as_bytes(), &bytes] {
            let mut talk = talk(Mechanism::Scram512, "user", "pencil");
            talk.first();
            prop_assert!(talk.next(message).is_err() || !talk.is_done());
            talk.step = Step::Last(vec![7; 64]);
            prop_assert!(talk.next(message).is_err() && !talk.is_done());
        }
    }
}

#[test]
fn alerts_and_certificates_that_are_not_accepted_are_told_apart_from_what_may_pass() {
    use AlertDescription as Alert;
    let of = |error| refusal(&io::Error::new(ErrorKind::InvalidData, error));
    let alert = rustls::Error::AlertReceived;
    for (error, advice) in [
        (alert(Alert::BadCertificate), Some(OURS)),
        (alert(Alert::CertificateRequired), Some(OURS)),
        (alert(Alert::UnknownCA), Some(OURS)),
        (alert(Alert::CertificateExpired), Some(OURS)),
        (alert(Alert::CertificateUnknown), Some(OURS)),
        (alert(Alert::HandshakeFailure), Some(NOTHING_SHARED)),
        (alert(Alert::InternalError), None),
        (CertificateError::UnknownIssuer.into(), Some(THEIRS)),
        (CertificateError::NotValidYet.into(), Some(THEIRS)),
        (CertificateError::BadEncoding.into(), Some(STRICTER)),
        (rustls::Error::DecryptError, None),
    ] {
        let told: Option<String> = of(error);
        let advised = advice
            .zip(told.as_deref())
            .is_some_and(|(a, t)| t.starts_with(a));
        assert!(advised || advice.is_none() && told.is_none(), "{told:?}");
    }
    assert_eq!(refusal(&ErrorKind::ConnectionReset.into()), None);
    assert_eq!(refusal(&io::Error::other("x")), None);
}

#[test]
fn every_conversation_has_its_own_nonce() {
    let user = [
        ("sasl.mechanism", "SCRAM-SHA-512"),
        ("sasl.username", "alice"),
        ("sasl.password", "hunter2"),
    ];
    let security = of("sasl_plaintext", &user).unwrap();
    let first = || security.conversation().unwrap().first();
    assert_ne!(first(), first());
    assert_eq!(first().len(), "n,,n=alice,r=".len() + 32);
    let told = format!("{security:?}");
    assert!(
        told.contains("SCRAM-SHA-512") && !told.contains("hunter2"),
        "{told}"
    );
}

#[test]
fn protocols_are_taken_in_any_case_and_no_others() {
    for (protocol, tls, sasl) in [
        ("", false, false),
        ("PlainText", false, false),
        (" SASL_PLAINTEXT", false, true),
        ("SSL", true, false),
        ("Sasl_Ssl", true, true),
    ] {
        let more = [
            CA,
            ("sasl.mechanisms", "PLAIN"),
            ("sasl.username", "a"),
            ("sasl.password", "b"),
        ];
        let security = of(protocol, &more).unwrap();
        assert_eq!(
            (security.tls.is_some(), security.sasl.is_some()),
            (tls, sasl)
        );
        assert_eq!(security.conversation().is_some(), sasl);
    }
    let Err(Refused::Invalid(error)) = of("tls", &[]) else {
        panic!("a protocol that there is not");
    };
    assert!(error.to_string().contains("security.protocol"), "{error}");
}

#[test]
fn what_only_librdkafka_can_do_is_named() {
    let tls: &[(&str, &str)] = &[
        ("enable.ssl.certificate.verification", "false"),
        ("ssl.endpoint.identification.algorithm", "none"),
        ("ssl.ca.certificate.stores", "Root"),
        ("ssl.cipher.suites", "ALL"),
        ("ssl.crl.location", "x"),
        ("ssl.curves.list", "P-256"),
        ("ssl.engine.id", "x"),
        ("ssl.engine.location", "x"),
        ("ssl.keystore.location", "x"),
        ("ssl.keystore.password", "x"),
        ("ssl.providers", "legacy"),
        ("ssl.sigalgs.list", "x"),
        ("ssl.truststore.location", "x"),
        ("ssl.anything.new", "x"),
    ];
    let sasl: &[(&str, &str)] = &[
        ("sasl.mechanism", "GSSAPI"),
        ("sasl.mechanism", "OAUTHBEARER"),
        ("sasl.mechanism", "SCRAM-SHA-1"),
        ("sasl.mechanism", "plain"),
        ("sasl.kerberos.service.name", "kafka"),
        ("sasl.oauthbearer.config", "x"),
        ("enable.sasl.oauthbearer.unsecure.jwt", "true"),
        ("sasl.anything.new", "x"),
    ];
    let user = [
        ("sasl.mechanism", "PLAIN"),
        ("sasl.username", "a"),
        ("sasl.password", "b"),
    ];
    for (protocol, table) in [("ssl", tls), ("sasl_plaintext", sasl)] {
        for (key, value) in table {
            let mut all = properties(&user);
            all.insert(CA.0.into(), CA.1.into());
            all.insert((*key).into(), (*value).into());
            for without in [
                "plaintext",
                if protocol == "ssl" {
                    "sasl_plaintext"
                } else {
                    "ssl"
                },
            ] {
                all.insert("security.protocol".into(), without.into());
                Security::of(&all).unwrap();
            }
            for with in [protocol, "sasl_ssl"] {
                all.insert("security.protocol".into(), with.into());
                match Security::of(&all) {
                    Err(Refused::NotOurs { key: told }) => assert_eq!(told, *key),
                    other => panic!("{key}={value}: {other:?}"),
                }
            }
        }
    }
    for (one, two) in [("PLAIN", "GSSAPI"), ("GSSAPI", "PLAIN")] {
        let both = [("sasl.mechanism", one), ("sasl.mechanisms", two)];
        assert!(matches!(
            of("sasl_plaintext", &both),
            Err(Refused::NotOurs { .. })
        ));
    }
    let none = of("sasl_plaintext", &user[1..]);
    assert!(matches!(none, Err(Refused::NotOurs { key }) if key == "sasl.mechanism"));
}

#[test]
fn defaults_that_are_given_are_understood() {
    for (verify, names) in [("true", "https"), ("T", "HTTPS"), ("1", " https")] {
        let given = [
            CA,
            ("enable.ssl.certificate.verification", verify),
            ("ssl.endpoint.identification.algorithm", names),
            ("ssl.key.password", "for no key"),
        ];
        of("ssl", &given).unwrap();
    }
}

#[test]
fn credentials_that_are_missing_are_told() {
    for missing in ["sasl.username", "sasl.password"] {
        let mut all = properties(&[
            ("security.protocol", "SASL_PLAINTEXT"),
            ("sasl.mechanisms", "SCRAM-SHA-256"),
            ("sasl.username", "alice"),
            ("sasl.password", "hunter2"),
        ]);
        all.remove(missing);
        match Security::of(&all) {
            Err(Refused::Invalid(error)) => {
                let told = error.to_string();
                assert!(
                    told.contains(missing) && !told.contains("hunter2"),
                    "{told}"
                );
            }
            other => panic!("{missing}: {other:?}"),
        }
    }
}

#[test]
fn white_space_before_values_is_dropped_as_librdkafka_drops_it() {
    let user = [
        ("sasl.mechanism", " PLAIN"),
        ("sasl.username", "\talice "),
        ("sasl.password", "  pass word "),
    ];
    let security = of("sasl_plaintext", &user).unwrap();
    let first = security.conversation().unwrap().first();
    assert_eq!(first, b"\0alice \0pass word ");
}
