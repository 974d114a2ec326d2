//! TLS against a server of our own, with what is right and with what is wrong.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    RootCertStore, ServerConfig, ServerConnection, StreamOwned, SupportedProtocolVersion,
};

use super::{Refused, Security, Stream, is_stricter_than_openssl, refusal};
use crate::LogError;

/// Keys and certificates of a throw-away authority.
pub(crate) struct Certificates(tempfile::TempDir);

impl Certificates {
    pub(crate) fn file(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap()
    }
}

const SCRIPT: &str = r#"set -eu
ec() { openssl genpkey -algorithm EC -pkeyopt "ec_paramgen_curve:${2:-P-256}" -out "$1.key"; }
authority() { ec "$1"; openssl req -x509 -new -key "$1.key" -days 2 -subj "/CN=test $1" -out "$1.pem"; }
request() { openssl req -new -key "$1.key" -subj "/CN=${2:-$1}" -out "$1.csr"; }
sign() { openssl x509 -req -in "$1.csr" -CA ca.pem -CAkey ca.key -set_serial "0x$(openssl rand -hex 8)" -days "$2" -out "$1.pem" ${3:+-extfile "$3"}; }
signed() { request "$1"; printf 'subjectAltName=%s\nbasicConstraints=CA:FALSE\n' "$2" >"$1.ext"; sign "$1" "$3" "$1.ext"; }
authority ca; authority stranger
ec server; signed server DNS:localhost,IP:127.0.0.1,IP:::1 2
ec elsewhere; signed elsewhere DNS:elsewhere.example 2
ec expired; signed expired DNS:localhost,IP:127.0.0.1 -1
ec p521 P-521; signed p521 DNS:localhost 2
ec client; signed client DNS:client 2
ec unnamed; request unnamed localhost; printf 'basicConstraints=CA:FALSE\n' >unnamed.ext; sign unnamed 2 unnamed.ext
ec old; request old localhost; openssl x509 -req -in old.csr -CA ca.pem -CAkey ca.key -set_serial 77 -days 2 -out old.pem
ec strange; request strange; printf 'subjectAltName=DNS:localhost\n' >strange.ext
openssl x509 -req -in strange.csr -CA stranger.pem -CAkey stranger.key -set_serial 7 -days 2 -extfile strange.ext -out strange.pem
ec weak; request weak localhost; printf 'subjectAltName=DNS:localhost\n' >weak.ext
openssl x509 -req -sha1 -in weak.csr -CA ca.pem -CAkey ca.key -set_serial 78 -days 2 -extfile weak.ext -out weak.pem
ec self; openssl req -x509 -new -key self.key -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost -out self.pem
openssl genrsa -out rsa.key 2048; signed rsa DNS:client 2
openssl rsa -in rsa.key -traditional -out rsa.pkcs1.key
openssl ec -in client.key -out client.sec1.key
openssl genrsa -out short.key 1024; signed short DNS:client 2
openssl ecparam -name prime256v1 -genkey -out parameters.key; signed parameters DNS:client 2
openssl pkcs8 -topk8 -in client.key -out client.locked.key -v2 aes-256-cbc -passout pass:hunter2
openssl rsa -in rsa.key -traditional -aes128 -passout pass:hunter2 -out rsa.locked.key
openssl x509 -in ca.pem -trustout -out ca.trusted.pem
openssl x509 -in ca.pem -outform der -out ca.der
cat stranger.pem ca.pem >both.pem
cat client.key client.pem >client.both.pem
mkdir named hashed empty
cp ca.pem named/mine.crt; cp stranger.pem named/other.pem; cp client.key named/a.key; cp client.key named/a.pem
cp ca.pem "hashed/$(openssl x509 -in ca.pem -noout -subject_hash).0"; cp stranger.pem hashed/stranger.pem; ln -s nowhere hashed/00000000.0
head -c 200 ca.pem >cut.pem
echo nothing >nothing.pem
"#;

pub(crate) fn certificates() -> &'static Certificates {
    static MADE: OnceLock<Certificates> = OnceLock::new();
    MADE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let mut shell = Command::new("bash");
        let made = shell
            .arg("-c")
            .arg(SCRIPT)
            .current_dir(&folder)
            .output()
            .unwrap();
        assert!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
        Certificates(folder)
    })
}

fn security(pairs: &[(&str, &str)]) -> Result<Security, Refused> {
    let mut all = BTreeMap::from([("security.protocol".to_owned(), "ssl".to_owned())]);
    all.extend(
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned())),
    );
    Security::of(&all)
}

/// A security that trusts `ca`, with more properties.
fn trusting(ca: &str, pairs: &[(&str, &str)]) -> Security {
    let ca = certificates().file(ca);
    let all = [&[("ssl.ca.location", ca.as_str())], pairs].concat();
    security(&all).unwrap()
}

static TLS12: &[&SupportedProtocolVersion] = &[&rustls::version::TLS12];
static TLS13: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// A broker that answers each four bytes with the same.
struct Server {
    port: u16,
}

impl Server {
    fn start(name: &str, versions: &[&'static SupportedProtocolVersion], asks: bool) -> Self {
        let made = certificates();
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .unwrap();
        let builder = if asks {
            let mut roots = RootCertStore::empty();
            roots
                .add(CertificateDer::from_pem_file(made.file("ca.pem")).unwrap())
                .unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        } else {
            builder.with_no_client_auth()
        };
        let chain = CertificateDer::pem_file_iter(made.file(&format!("{name}.pem"))).unwrap();
        let key = PrivateKeyDer::from_pem_file(made.file(&format!("{name}.key"))).unwrap();
        // certificates that rustls would not serve are served all the same
        let key = ring::sign::any_supported_type(&key).unwrap();
        let identity = CertifiedKey::new(chain.map(Result::unwrap).collect(), key);
        let config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(identity)));
        let config = Arc::new(config);
        Self::serve(move |tcp| {
            let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut tls = StreamOwned::new(connection, tcp);
            let mut four = [0; 4];
            while tls.read_exact(&mut four).is_ok() {
                tls.write_all(&four).unwrap();
                tls.flush().unwrap();
            }
        })
    }

    /// One thread for each connection; all of them end with their connections.
    fn serve(work: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let work = Arc::new(work);
        thread::spawn(move || {
            for tcp in listener.incoming() {
                let work = Arc::clone(&work);
                thread::spawn(move || work(tcp.unwrap()));
            }
        });
        Self { port }
    }

    fn connect(&self) -> TcpStream {
        let tcp = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        tcp.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        tcp.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
        tcp
    }

    fn wrap(&self, security: &Security, host: &str) -> Result<Stream, LogError> {
        security.wrap(self.connect(), host)
    }
}

fn echo(stream: &mut Stream) -> std::io::Result<()> {
    stream.write_all(b"ping")?;
    stream.flush()?;
    let mut four = [0; 4];
    stream.read_exact(&mut four)?;
    assert_eq!(&four, b"ping");
    Ok(())
}

fn denied(result: Result<Stream, LogError>, words: &[&str]) {
    match result {
        Err(LogError::Denied { what, detail }) => {
            println!("{what}: {detail}");
            assert!(
                words.iter().all(|word| detail.contains(word)),
                "{what}: {detail}"
            );
            assert!(!detail.contains('\n'), "{detail}");
        }
        other => panic!("{words:?}: {other:?}"),
    }
}

fn unavailable(result: Result<Stream, LogError>, word: &str) {
    match result {
        Err(LogError::Unavailable { what, detail }) => {
            println!("{what}: {detail}");
            assert!(detail.contains(word), "{what}: {detail}");
        }
        other => panic!("{word}: {other:?}"),
    }
}

#[test]
fn the_right_certificate_is_accepted_by_name_and_by_address_in_both_versions() {
    for versions in [TLS12, TLS13] {
        let server = Server::start("server", versions, false);
        let text = certificates().text("both.pem");
        for security in [
            trusting("ca.pem", &[]),
            trusting("both.pem", &[]),
            trusting("named", &[]),
            trusting("hashed", &[]),
            trusting("stranger.pem", &[("ssl.ca.pem", &text)]),
            security(&[("ssl.ca.pem", &text)]).unwrap(),
            security(&[("ssl.ca.pem", &text), ("ssl.ca.location", "probe")]).unwrap(),
        ] {
            for host in ["localhost", "127.0.0.1", "LOCALHOST", "::1", "[::1]"] {
                let mut stream = server.wrap(&security, host).unwrap();
                echo(&mut stream).unwrap();
                assert_eq!(stream.socket().peer_addr().unwrap().port(), server.port);
            }
        }
    }
}

#[test]
fn without_tls_the_socket_is_passed_on() {
    let server = Server::serve(|mut tcp| {
        let mut four = [0; 4];
        tcp.read_exact(&mut four).unwrap();
        tcp.write_all(&four).unwrap();
    });
    let security = Security::of(&BTreeMap::new()).unwrap();
    assert!(security.conversation().is_none());
    let mut stream = server.wrap(&security, "no host name at all").unwrap();
    assert!(matches!(stream, Stream::Plain(_)));
    echo(&mut stream).unwrap();
}

#[test]
fn a_certificate_that_is_not_the_brokers_is_denied_with_advice() {
    for versions in [TLS12, TLS13] {
        let server = Server::start("server", versions, false);
        denied(
            server.wrap(&trusting("stranger.pem", &[]), "localhost"),
            &["ssl.ca.location", "authority", "UnknownIssuer"],
        );
        denied(
            server.wrap(&trusting("ca.pem", &[]), "elsewhere.example"),
            &["host name", "localhost"],
        );
        denied(
            server.wrap(&trusting("ca.pem", &[]), "127.0.0.2"),
            &["host name"],
        );
        let server = Server::start("elsewhere", versions, false);
        denied(
            server.wrap(&trusting("ca.pem", &[]), "localhost"),
            &["host name"],
        );
        let server = Server::start("expired", versions, false);
        denied(
            server.wrap(&trusting("ca.pem", &[]), "localhost"),
            &["not expired", "Expired"],
        );
    }
    // what is beside hashed names is not trusted, as with OpenSSL
    let server = Server::start("strange", TLS13, false);
    denied(
        server.wrap(&trusting("hashed", &[]), "localhost"),
        &["UnknownIssuer"],
    );
    echo(&mut server.wrap(&trusting("named", &[]), "localhost").unwrap()).unwrap();
}

#[test]
fn a_certificate_that_openssl_might_have_taken_is_denied_with_other_advice() {
    for (name, ca) in [
        ("unnamed", "ca.pem"),
        ("old", "ca.pem"),
        ("weak", "ca.pem"),
        ("self", "self.pem"),
    ] {
        let server = Server::start(name, TLS13, false);
        let refused = server.wrap(&trusting(ca, &[]), "localhost");
        assert!(
            refused.as_ref().is_err_and(is_stricter_than_openssl),
            "{name}"
        );
        denied(refused, &["subjectAltName"]);
    }
    let server = Server::start("elsewhere", TLS13, false);
    let refused = server.wrap(&trusting("ca.pem", &[]), "localhost");
    assert!(!refused.is_err_and(|error| is_stricter_than_openssl(&error)));
}

/// The security of a client with certificate and key from these files.
fn shown(certificate: &str, key: &str, more: &[(&str, &str)]) -> Result<Security, Refused> {
    let made = certificates();
    let ca = made.file("ca.pem");
    let (certificate, key) = (made.file(certificate), made.file(key));
    let mine = [
        ("ssl.ca.location", ca.as_str()),
        ("ssl.certificate.location", &certificate),
        ("ssl.key.location", &key),
    ];
    security(&[&mine, more].concat())
}

#[test]
fn a_client_certificate_is_shown_with_keys_of_every_form() {
    let made = certificates();
    for versions in [TLS12, TLS13] {
        let server = Server::start("server", versions, true);
        for (certificate, key) in [
            ("client.pem", "client.key"),
            ("client.pem", "client.sec1.key"),
            ("client.both.pem", "client.both.pem"),
            ("rsa.pem", "rsa.key"),
            ("rsa.pem", "rsa.pkcs1.key"),
            ("parameters.pem", "parameters.key"),
        ] {
            let security = shown(certificate, key, &[]).unwrap();
            let mut stream = server.wrap(&security, "localhost").unwrap();
            echo(&mut stream).unwrap();
            // and again, without a session that is resumed
            echo(&mut server.wrap(&security, "localhost").unwrap()).unwrap();
        }
        let (certificate, key) = (made.text("client.pem"), made.text("client.key"));
        let literal = [
            ("ssl.certificate.pem", certificate.as_str()),
            ("ssl.key.pem", &key),
        ];
        let security = trusting("ca.pem", &literal);
        echo(&mut server.wrap(&security, "localhost").unwrap()).unwrap();
        let told = format!("{security:?}");
        assert!(!told.contains("KEY") && told.len() < 60, "{told}");
    }
}

#[test]
fn a_client_certificate_that_is_missing_or_not_wanted_is_denied_with_advice() {
    let refused = |security: &Security, versions| {
        let server = Server::start("server", versions, true);
        match server.wrap(security, "localhost") {
            Err(LogError::Denied { detail, .. }) => detail,
            Err(other) => panic!("{other}"),
            // TLS 1.3 tells only now
            Ok(mut stream) => {
                let error = echo(&mut stream).unwrap_err();
                refusal(&error).unwrap_or_else(|| panic!("{error:?}"))
            }
        }
    };
    for versions in [TLS12, TLS13] {
        for security in [
            trusting("ca.pem", &[]),
            shown("self.pem", "self.key", &[]).unwrap(),
            shown("stranger.pem", "stranger.key", &[]).unwrap(),
            shown("expired.pem", "expired.key", &[]).unwrap(),
        ] {
            let detail = refused(&security, versions);
            println!("{detail}");
            assert!(detail.contains("ssl.certificate.location"), "{detail}");
        }
    }
}

#[test]
fn what_the_broker_said_is_heard_although_writing_fails_first() {
    let server = Server::start("server", TLS13, true);
    for _ in 0..20 {
        let mut stream = server.wrap(&trusting("ca.pem", &[]), "localhost").unwrap();
        let much = vec![0; 1 << 20];
        let error = loop {
            let done = stream.write_all(&much).and_then(|()| stream.flush());
            if let Err(error) = done {
                break error;
            }
        };
        assert!(refusal(&error).is_some(), "{error:?}");
    }
}

#[test]
fn a_broker_without_tls_is_unavailable_with_a_question() {
    let security = trusting("ca.pem", &[]);
    let closes = Server::serve(|mut tcp| {
        let mut some = [0; 16];
        let _ = tcp.read(&mut some);
    });
    unavailable(closes.wrap(&security, "localhost"), "speak TLS");
    for answer in [
        &b"\0\0\0\x0a\0\0\0\0\0\0\0\0\0\0"[..],
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ] {
        let answers = Server::serve(move |mut tcp| {
            tcp.write_all(answer).unwrap();
            thread::sleep(Duration::from_millis(200));
        });
        unavailable(answers.wrap(&security, "localhost"), "speak TLS");
    }
}

#[test]
fn a_broker_that_is_silent_or_slow_is_unavailable_in_time() {
    let security = trusting("ca.pem", &[]);
    let silent = Server::serve(|_tcp| thread::sleep(Duration::from_secs(3)));
    let slow = Server::serve(|mut tcp| {
        // the header of a long handshake message, and then byte by byte
        let _ = tcp.write_all(&[22, 3, 3, 0x40, 0]);
        while tcp.write_all(&[2]).is_ok() {
            thread::sleep(Duration::from_millis(20));
        }
    });
    for server in [silent, slow] {
        let tcp = server.connect();
        tcp.set_read_timeout(Some(Duration::from_millis(300)))
            .unwrap();
        let began = Instant::now();
        unavailable(security.wrap(tcp, "localhost"), "in time");
        assert!(
            began.elapsed() < Duration::from_secs(1),
            "{:?}",
            began.elapsed()
        );
    }
}

#[test]
fn a_read_that_timed_out_goes_on_where_it_was() {
    let server = Server::start("server", TLS13, false);
    let mut stream = server.wrap(&trusting("ca.pem", &[]), "localhost").unwrap();
    stream
        .socket()
        .set_read_timeout(Some(Duration::from_millis(50)))
        .unwrap();
    let error = stream.read(&mut [0; 4]).unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        "{error}"
    );
    assert!(refusal(&error).is_none());
    stream
        .socket()
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    echo(&mut stream).unwrap();
}

#[test]
fn a_name_that_no_certificate_could_have_is_invalid() {
    let server = Server::start("server", TLS13, false);
    for host in ["", "a b", "local host", "-x"] {
        let result = server.wrap(&trusting("ca.pem", &[]), host);
        assert!(
            matches!(result, Err(LogError::Invalid { .. })),
            "{host}: {result:?}"
        );
    }
}

#[test]
fn files_that_are_not_what_they_should_be_are_told_in_one_line() {
    let made = certificates();
    let key = made.text("client.key");
    let one_line = key.replace('\n', " ");
    let ca = made.file("ca.pem");
    let client = made.file("client.pem");
    let ca_property = ("ssl.ca.location", ca.as_str());
    let shown = ("ssl.certificate.location", client.as_str());
    let nowhere = made.file("nowhere.pem");
    let [nothing, der, cut, empty] =
        ["nothing.pem", "ca.der", "cut.pem", "empty"].map(|name| made.file(name));
    let locked = made.file("client.locked.key");
    let other = made.file("rsa.key");
    let cases: &[(&[(&str, &str)], &[&str])] = &[
        (
            &[("ssl.ca.location", &nowhere)],
            &["ssl.ca.location", "nowhere.pem", "may read"],
        ),
        (
            &[("ssl.ca.location", &nothing)],
            &["ssl.ca.location", "nothing.pem", "PEM form"],
        ),
        (
            &[("ssl.ca.location", &der)],
            &["ssl.ca.location", "ca.der", "PEM form"],
        ),
        (
            &[("ssl.ca.location", &cut)],
            &["ssl.ca.location", "cut.pem", "damaged"],
        ),
        (
            &[("ssl.ca.location", &empty)],
            &["ssl.ca.location", "empty", "authority"],
        ),
        (
            &[("ssl.ca.location", "")],
            &["ssl.ca.location", "cannot read"],
        ),
        (&[("ssl.ca.pem", "nonsense")], &["ssl.ca.pem", "PEM form"]),
        (&[("ssl.ca.pem", &key)], &["ssl.ca.pem", "authority"]),
        (
            &[ca_property, shown, ("ssl.key.location", &nowhere)],
            &["ssl.key.location", "nowhere.pem"],
        ),
        (
            &[ca_property, shown, ("ssl.key.location", &client)],
            &["ssl.key.location", "client.pem", "private key"],
        ),
        (
            &[ca_property, shown, ("ssl.key.location", &locked)],
            &["ssl.key.location", "ssl.key.password"],
        ),
        (
            &[ca_property, shown, ("ssl.key.location", &other)],
            &["ssl.key.location", "rsa.key", "does not fit"],
        ),
        (
            &[ca_property, shown, ("ssl.key.pem", &one_line)],
            &["ssl.key.pem", "private key"],
        ),
        (
            &[ca_property, ("ssl.key.pem", &key)],
            &["ssl.key.pem", "ssl.certificate.location"],
        ),
        (
            &[
                ca_property,
                ("ssl.certificate.pem", &key),
                ("ssl.key.pem", &key),
            ],
            &["ssl.certificate.pem", "certificate"],
        ),
    ];
    for (pairs, words) in cases {
        match security(pairs) {
            Err(Refused::Invalid(error)) => {
                let told = error.to_string();
                println!("{told}");
                assert!(
                    words.iter().all(|word| told.contains(word)),
                    "{words:?}: {told}"
                );
                let secret = key.lines().nth(1).unwrap();
                assert!(
                    !told.contains('\n') && !told.contains(&secret[..8]),
                    "{told}"
                );
            }
            other => panic!("{words:?}: {other:?}"),
        }
    }
}

#[test]
fn keys_and_certificates_that_only_openssl_knows_are_left_to_librdkafka() {
    let password = ("ssl.key.password", "hunter2");
    let trusted = certificates().file("ca.trusted.pem");
    let alone = certificates().file("client.pem");
    for (result, expected) in [
        (
            shown("client.pem", "client.locked.key", &[password]),
            "ssl.key.password",
        ),
        (
            shown("rsa.pem", "rsa.locked.key", &[password]),
            "ssl.key.password",
        ),
        (shown("short.pem", "short.key", &[]), "ssl.key.location"),
        (shown("p521.pem", "p521.key", &[]), "ssl.key.location"),
        (
            security(&[("ssl.ca.location", &trusted)]),
            "ssl.ca.location",
        ),
        (
            security(&[("ssl.certificate.location", &alone)]),
            "ssl.certificate.location",
        ),
    ] {
        match result {
            Err(Refused::NotOurs { key }) => assert_eq!(key, expected),
            other => panic!("{expected}: {other:?}"),
        }
    }
}

#[test]
fn without_an_authority_those_of_this_system_count() {
    let server = Server::start("server", TLS13, false);
    for pairs in [&[][..], &[("ssl.ca.location", "probe")]] {
        match security(pairs) {
            Ok(security) => denied(server.wrap(&security, "localhost"), &["UnknownIssuer"]),
            Err(Refused::Invalid(error)) => {
                assert!(error.to_string().contains("this system has no"), "{error}");
            }
            Err(other) => panic!("{other:?}"),
        }
    }
}

/// OpenSSL as a broker, which ends with it.
struct OpenSsl(Child, u16);

impl OpenSsl {
    fn start(arguments: &[&str]) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let mut command = Command::new("openssl");
        command.args([
            "s_server",
            "-accept",
            &port.to_string(),
            "-rev",
            "-cert",
            "server.pem",
        ]);
        command
            .args(["-key", "server.key", "-CAfile", "ca.pem"])
            .args(arguments);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command.current_dir(&certificates().0).spawn().unwrap();
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(began.elapsed() < Duration::from_secs(10));
            thread::sleep(Duration::from_millis(10));
        }
        Self(child, port)
    }

    /// What comes of a line that is sent; it comes back reversed.
    fn refusal(&self, security: &Security) -> Option<String> {
        let server = Server { port: self.1 };
        let mut stream = match server.wrap(security, "localhost") {
            Ok(stream) => stream,
            Err(LogError::Denied { detail, .. }) => return Some(detail),
            Err(other) => panic!("{other}"),
        };
        let mut line = [0; 4];
        let sent = stream.write_all(b"abc\n").and_then(|()| stream.flush());
        match sent.and_then(|()| stream.read_exact(&mut line)) {
            Ok(()) => assert_eq!(&line, b"cba\n"),
            Err(error) => return Some(refusal(&error).unwrap_or_else(|| panic!("{error:?}"))),
        }
        None
    }
}

impl Drop for OpenSsl {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn openssl_is_understood_in_both_versions_also_when_it_refuses() {
    let ours = "ssl.certificate.location";
    let mine = || shown("client.pem", "client.key", &[]).unwrap();
    let another = || shown("stranger.pem", "stranger.key", &[]).unwrap();
    for version in ["-tls1_2", "-tls1_3"] {
        let open = OpenSsl::start(&[version]);
        assert_eq!(open.refusal(&trusting("ca.pem", &[])), None);
        let asks = OpenSsl::start(&[version, "-Verify", "1", "-verify_return_error"]);
        assert_eq!(asks.refusal(&mine()), None);
        for security in [trusting("ca.pem", &[]), another()] {
            let detail = asks.refusal(&security).unwrap();
            println!("{version}: {detail}");
            assert!(detail.contains(ours), "{detail}");
        }
    }
    for old in [
        &["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"][..],
        &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA"],
    ] {
        let detail = OpenSsl::start(old)
            .refusal(&trusting("ca.pem", &[]))
            .unwrap();
        println!("{detail}");
        assert!(detail.contains("in common"), "{detail}");
    }
}
