//! One connection to a broker: one request at a time, and its answer. Every wait has an end.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs as _};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::{
    ApiKey, ApiVersionsRequest, RequestHeader, SaslAuthenticateRequest, SaslHandshakeRequest,
};
use kafka_protocol::protocol::{Encodable, StrBytes};

use super::answers::{self, Answer};
use super::security::{self, Stream};
use super::settings::{Address, Settings};
use crate::LogError;

/// Sockets that are open, to be cut when the reader ends: what waits on one is woken by that.
#[derive(Debug, Default)]
pub(super) struct Sockets(Mutex<Open>);

#[derive(Debug, Default)]
struct Open {
    next: u64,
    all: BTreeMap<u64, TcpStream>,
    cut: bool,
}

impl Sockets {
    fn open(&self) -> std::sync::MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, socket: &TcpStream) -> io::Result<u64> {
        let mut open = self.open();
        if open.cut {
            return Err(io::Error::other("the reader ends"));
        }
        let number = open.next;
        open.next += 1;
        open.all.insert(number, socket.try_clone()?);
        Ok(number)
    }

    fn remove(&self, number: u64) {
        self.open().all.remove(&number);
    }

    /// Cuts all of them, now and later.
    pub(super) fn cut(&self) {
        let mut open = self.open();
        open.cut = true;
        for socket in open.all.values() {
            // one that is gone already is as good
            socket.shutdown(Shutdown::Both).ok();
        }
    }
}

/// An open connection, authenticated.
pub(super) struct Connection<'a> {
    stream: Stream,
    peer: Address,
    settings: &'a Settings,
    sockets: &'a Sockets,
    number: u64,
    correlation: i32,
    versions: BTreeMap<i16, (i16, i16)>,
    out: BytesMut,
    /// The last answer's memory.
    spare: BytesMut,
    /// When the broker wants to be told again who this is.
    expires: Option<Instant>,
}

impl Drop for Connection<'_> {
    fn drop(&mut self) {
        self.sockets.remove(self.number);
    }
}

impl<'a> Connection<'a> {
    /// Connects, secures, asks which versions the broker speaks, and authenticates.
    pub(super) fn open(
        peer: &Address,
        settings: &'a Settings,
        sockets: &'a Sockets,
    ) -> Result<Self, LogError> {
        let tcp = connect(peer, settings).map_err(|e| unavailable(peer, &e))?;
        let number = sockets.add(&tcp).map_err(|e| unavailable(peer, &e))?;
        let stream = match settings.security.wrap(tcp, &peer.host) {
            Ok(stream) => stream,
            Err(error) => {
                sockets.remove(number);
                return Err(error);
            }
        };
        let mut connection = Self {
            stream,
            peer: peer.clone(),
            settings,
            sockets,
            number,
            correlation: 0,
            versions: BTreeMap::new(),
            out: BytesMut::new(),
            spare: BytesMut::new(),
            expires: None,
        };
        connection.ask_versions()?;
        connection.authenticate()?;
        Ok(connection)
    }

    /// Whether the broker would soon cut it, because the authentication is too old.
    pub(super) fn is_too_old(&self, now: Instant) -> bool {
        self.expires.is_some_and(|at| at <= now)
    }

    /// The newest version of a request that both sides speak, `newest` at most.
    pub(super) fn version(&self, key: ApiKey, newest: i16) -> Option<i16> {
        let ours = key.valid_versions();
        let (min, max) = *self.versions.get(&(key as i16))?;
        let version = max.min(ours.max).min(newest);
        (version >= min.max(ours.min)).then_some(version)
    }

    /// Takes the memory of an answer back, where nobody holds a part of it any more.
    pub(super) fn give_back(&mut self, answer: Bytes) {
        // a giant's is not kept for ever
        let usual = usize::try_from(self.settings.fetch_max)
            .unwrap_or(0)
            .saturating_mul(2);
        if let Ok(memory) = answer.try_into_mut()
            && memory.capacity() <= usual.max(READ_BYTES)
        {
            self.spare = memory;
        }
    }

    /// Sends a request, and waits for its answer, `patience` longer than other requests may take. The answer is past its
    /// header.
    pub(super) fn ask<Q: Encodable>(
        &mut self,
        key: ApiKey,
        version: i16,
        question: &Q,
        patience: Duration,
    ) -> Result<Answer, LogError> {
        self.correlation = self.correlation.wrapping_add(1);
        let header = RequestHeader::default()
            .with_request_api_key(key as i16)
            .with_request_api_version(version)
            .with_correlation_id(self.correlation)
            .with_client_id(Some(StrBytes::from_string(self.settings.client_id.clone())));
        self.out.clear();
        self.out.extend_from_slice(&[0; 4]);
        header
            .encode(&mut self.out, key.request_header_version(version))
            .and_then(|()| question.encode(&mut self.out, version))
            .map_err(|e| LogError::Invalid {
                what: format!("a {key:?} request"),
                detail: e.to_string(),
            })?;
        let length = i32::try_from(self.out.len() - 4).unwrap_or(i32::MAX);
        self.out[..4].copy_from_slice(&length.to_be_bytes());

        let limit = self.settings.request_timeout.saturating_add(patience);
        let until = Instant::now() + limit;
        let sent = self
            .stream
            .socket()
            .set_write_timeout(Some(limit))
            .and_then(|()| self.stream.write_all(&self.out))
            .and_then(|()| self.stream.flush());
        sent.map_err(|e| self.broken(&e))?;
        let answer = self.receive(until)?;
        let has_tags = key.response_header_version(version) >= 1;
        let mut answer = Answer::new(answer, has_tags);
        let correlation = answer.i32().map_err(|e| self.nonsense(key, &e))?;
        if correlation != self.correlation {
            return Err(self.nonsense(key, &"it answers another request"));
        }
        answer.tags().map_err(|e| self.nonsense(key, &e))?;
        // a broker that does not know the version must be understood all the same: this header stayed as it was
        answer.make_flexible(has_tags || key == ApiKey::ApiVersions && version >= 3);
        Ok(answer)
    }

    fn receive(&mut self, until: Instant) -> Result<Bytes, LogError> {
        let mut length = [0; 4];
        self.fill(&mut length, until)?;
        let length = usize::try_from(i32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > self.settings.response_max {
            return Err(self.broken(&io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "its answer of {length} bytes is larger than receive.message.max.bytes, or it speaks another protocol \
                     at this port (TLS?)"
                ),
            )));
        }
        let mut answer = std::mem::take(&mut self.spare);
        // what is beyond the last answer's length is made zero; a broker that promises more than it sends gets no memory
        let mut filled = 0;
        while filled < length {
            let next = length
                .min(filled + READ_BYTES)
                .max(length.min(answer.len()));
            answer.resize(next, 0);
            let part = answer.get_mut(filled..).unwrap_or_default();
            if let Err(error) = fill(&mut self.stream, part, until) {
                return Err(self.broken(&error));
            }
            filled = next;
        }
        answer.truncate(length);
        Ok(answer.freeze())
    }

    fn fill(&mut self, bytes: &mut [u8], until: Instant) -> Result<(), LogError> {
        fill(&mut self.stream, bytes, until).map_err(|e| self.broken(&e))
    }

    fn broken(&self, error: &io::Error) -> LogError {
        if let Some(detail) = security::refusal(error) {
            return LogError::Denied {
                what: format!("connect to {}", self.peer),
                detail,
            };
        }
        unavailable(&self.peer, error)
    }

    /// An answer that cannot be read.
    pub(super) fn nonsense(&self, key: ApiKey, what: &dyn std::fmt::Display) -> LogError {
        LogError::Unavailable {
            what: format!("{key:?} answer of {}", self.peer),
            detail: format!("it cannot be read: {what}"),
        }
    }

    // --- what comes first on every connection --------------------------------------------------------------------

    fn ask_versions(&mut self) -> Result<(), LogError> {
        let key = ApiKey::ApiVersions;
        let question = ApiVersionsRequest::default()
            .with_client_software_name(StrBytes::from_static_str("everlog"))
            .with_client_software_version(StrBytes::from_static_str(env!("CARGO_PKG_VERSION")));
        // a broker that does not know the version answers in the oldest form, with the versions that it knows
        for version in [3, 0] {
            let mut answer = self.ask(key, version, &question, Duration::ZERO)?;
            let read = answers::versions(&mut answer);
            let (code, spoken) = match read {
                Ok(read) => read,
                // the oldest form, in which a broker says that it does not know this one
                Err(_) if version > 0 => continue,
                Err(error) => return Err(self.nonsense(key, &error)),
            };
            match ResponseError::try_from_code(code) {
                None => {
                    self.versions = spoken.iter().map(|one| (one.key, one.versions)).collect();
                    return Ok(());
                }
                Some(ResponseError::UnsupportedVersion) => {}
                Some(error) => return Err(self.nonsense(key, &error)),
            }
        }
        Err(self.nonsense(key, &"it speaks no version that is known"))
    }

    fn authenticate(&mut self) -> Result<(), LogError> {
        let Some(mut conversation) = self.settings.security.conversation() else {
            return Ok(());
        };
        let what = format!("authenticate with {}", self.peer);
        let denied = |detail: String| LogError::Denied {
            what: what.clone(),
            detail: format!("look at sasl.mechanism, sasl.username and sasl.password: {detail}"),
        };
        let mechanism = conversation.mechanism();
        let question =
            SaslHandshakeRequest::default().with_mechanism(StrBytes::from_static_str(mechanism));
        let key = ApiKey::SaslHandshake;
        let mut answer = self.ask(key, 1, &question, Duration::ZERO)?;
        let (code, offered) =
            answers::mechanisms(&mut answer).map_err(|e| self.nonsense(key, &e))?;
        if code != 0 {
            let offered = offered.join(", ");
            return Err(denied(format!(
                "the broker offers {offered}, and not {mechanism}"
            )));
        }
        let key = ApiKey::SaslAuthenticate;
        let version = self.version(key, 2).unwrap_or(0);
        let mut message = Some(conversation.first());
        while let Some(bytes) = message {
            let question = SaslAuthenticateRequest::default().with_auth_bytes(bytes.into());
            let mut answer = self.ask(key, version, &question, Duration::ZERO)?;
            let answer =
                answers::authenticated(&mut answer, version).map_err(|e| self.nonsense(key, &e))?;
            if answer.code != 0 {
                return Err(denied(answer.words.unwrap_or_else(|| "refused".into())));
            }
            if let Ok(lifetime @ 1..) = u64::try_from(answer.lifetime) {
                // a connection that is made anew in time is never cut in the middle
                let lifetime = Duration::from_millis(lifetime / 10 * 8);
                self.expires = Instant::now().checked_add(lifetime);
            }
            message = conversation.next(&answer.message).map_err(denied)?;
        }
        if conversation.is_done() {
            Ok(())
        } else {
            Err(denied("the broker ended the conversation too early".into()))
        }
    }
}

/// Memory for an answer grows by so much as it comes.
const READ_BYTES: usize = 4 << 20;

fn fill(stream: &mut Stream, mut bytes: &mut [u8], until: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "it does not answer",
            ));
        }
        stream.socket().set_read_timeout(Some(left))?;
        match stream.read(bytes) {
            Ok(0) => {
                let cut = "it closed the connection";
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, cut));
            }
            Ok(count) => bytes = bytes.get_mut(count..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // how a socket says that its time is up
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn unavailable(peer: &Address, error: &io::Error) -> LogError {
    LogError::Unavailable {
        what: format!("broker {peer}"),
        detail: error.to_string(),
    }
}

/// Tries every address that the name has.
fn connect(peer: &Address, settings: &Settings) -> io::Result<TcpStream> {
    let mut last = None;
    for address in (peer.host.as_str(), peer.port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, settings.connect_timeout) {
            Ok(tcp) => {
                tcp.set_nodelay(true)?;
                tcp.set_read_timeout(Some(settings.request_timeout))?;
                tcp.set_write_timeout(Some(settings.request_timeout))?;
                let socket = socket2::SockRef::from(&tcp);
                if settings.keepalive {
                    socket.set_keepalive(true)?;
                }
                if let Some(bytes) = settings.receive_buffer {
                    socket.set_recv_buffer_size(bytes)?;
                }
                return Ok(tcp);
            }
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| io::Error::other("its name has no address")))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::TcpListener;
    use std::sync::Arc;

    use kafka_protocol::messages::MetadataRequest;

    use super::*;

    fn settings(port: u16) -> Settings {
        let properties = [
            ("bootstrap.servers", format!("127.0.0.1:{port}")),
            ("socket.timeout.ms", "1000".into()),
            ("receive.message.max.bytes", "1000000".into()),
        ];
        let properties = properties.map(|(k, v)| (k.to_owned(), v));
        Settings::of(&BTreeMap::from(properties)).unwrap()
    }

    /// What a broker that knows only Metadata says: its versions, and then nothing of anything.
    fn answers(request: &[u8], n: usize) -> Vec<u8> {
        let correlation = &request[4..8];
        let body: Vec<u8> = match n {
            0 => [&[0, 0, 2][..], &[0, 3, 0, 0, 0, 12, 0], &[0, 0, 0, 0, 0]].concat(),
            _ => [&[0][..], &[0, 0, 0, 0, 1, 0], &[0, 0, 0, 1], &[1, 0]].concat(),
        };
        let length = u32::try_from(4 + body.len()).unwrap().to_be_bytes();
        [&length[..], correlation, &body].concat()
    }

    /// Serves one connection by `say`: a request's bytes and its number to what is sent back; none closes.
    fn broker(
        say: impl Fn(&[u8], usize) -> Option<Vec<u8>> + Send + 'static,
    ) -> (u16, std::thread::JoinHandle<()>) {
        broker_that(true, say)
    }

    /// The same; one that does not wait closes behind its second answer.
    fn broker_that(
        waits: bool,
        say: impl Fn(&[u8], usize) -> Option<Vec<u8>> + Send + 'static,
    ) -> (u16, std::thread::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let thread = std::thread::spawn(move || {
            let (mut peer, _) = listener.accept().unwrap();
            for n in 0.. {
                let mut length = [0; 4];
                if peer.read_exact(&mut length).is_err() {
                    return;
                }
                let mut request = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap()];
                if peer.read_exact(&mut request).is_err() {
                    return;
                }
                let Some(answer) = say(&request, n) else {
                    return;
                };
                if peer.write_all(&answer).is_err() || (n == 1 && !waits) {
                    return;
                }
            }
        });
        (port, thread)
    }

    fn ask(port: u16) -> Result<answers::Metadata, LogError> {
        let (settings, sockets) = (settings(port), Sockets::default());
        let peer = settings.bootstrap[0].clone();
        let mut connection = Connection::open(&peer, &settings, &sockets)?;
        let key = ApiKey::Metadata;
        let version = connection.version(key, 12).unwrap();
        let mut answer =
            connection.ask(key, version, &MetadataRequest::default(), Duration::ZERO)?;
        answers::metadata(&mut answer, version).map_err(|e| connection.nonsense(key, &e))
    }

    #[test]
    fn a_broker_is_asked_in_the_newest_version_of_both() {
        let (port, thread) = broker(|request, n| {
            assert_eq!(
                request[..4],
                if n == 0 { [0, 18, 0, 3] } else { [0, 3, 0, 12] }
            );
            Some(answers(request, n))
        });
        let heard = ask(port).unwrap();
        assert_eq!((heard.brokers.len(), heard.topics.len()), (0, 0));
        thread.join().unwrap();
    }

    /// Cut off at every byte, by a broker that closes or hangs: an error each time, in time, that names the broker.
    #[test]
    fn an_answer_that_is_cut_off_anywhere_is_an_error() {
        let whole = answers(&[0; 8], 1).len();
        for cut in 0..whole {
            let hangs = cut % 7 == 3;
            let (port, thread) = broker_that(hangs, move |request, n| {
                let mut answer = answers(request, n);
                if n > 0 {
                    answer.truncate(cut);
                }
                Some(answer)
            });
            let began = Instant::now();
            let error = ask(port).unwrap_err();
            assert!(
                error.is_transient() && error.to_string().contains("127.0.0.1"),
                "{error}"
            );
            assert!(began.elapsed() < Duration::from_secs(10));
            thread.join().unwrap();
        }
    }

    #[test]
    fn what_is_no_kafka_is_an_error_and_takes_no_memory() {
        for (what, reply, words) in [
            (
                "http",
                &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
                "speaks another protocol",
            ),
            (
                "a TLS alert",
                &[0x15, 3, 3, 0, 2, 2, 80],
                "speaks another protocol",
            ),
            ("negative", &[0xff; 8], "speaks another protocol"),
            ("short", &[0, 0, 0, 1, 9], "cannot be read"),
            (
                "another request's",
                &[0, 0, 0, 8, 0, 0, 0, 99, 0, 0, 0, 0],
                "another request",
            ),
            ("nothing", &[], "closed the connection"),
        ] {
            let (port, thread) =
                broker(move |_, n| (n == 0 && !reply.is_empty()).then(|| reply.to_vec()));
            let error = ask(port).unwrap_err();
            assert!(
                error.is_transient() && error.to_string().contains(words),
                "{what}: {error}"
            );
            thread.join().unwrap();
        }
    }

    /// A reader that ends wakes who waits for a broker.
    #[test]
    fn a_cut_ends_every_wait() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let sockets = Arc::new(Sockets::default());
        let waits = Arc::clone(&sockets);
        let thread = std::thread::spawn(move || {
            let mut settings = settings(port);
            settings.request_timeout = Duration::from_secs(600);
            let peer = settings.bootstrap[0].clone();
            Connection::open(&peer, &settings, &waits).map(drop)
        });
        let peer = listener.accept().unwrap();
        let began = Instant::now();
        while sockets.open().all.is_empty() {
            std::thread::sleep(Duration::from_millis(5));
        }
        sockets.cut();
        assert!(thread.join().unwrap().is_err());
        assert!(began.elapsed() < Duration::from_secs(60));
        drop(peer);
        // and whoever comes later does not begin to
        let settings = settings(port);
        let late = Connection::open(&settings.bootstrap[0].clone(), &settings, &sockets).map(drop);
        assert!(late.is_err());
    }
}
