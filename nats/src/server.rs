//! The server's address and login.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fmt, io};

use async_nats::client::RequestErrorKind;
use async_nats::connection::State;
use async_nats::jetstream::{self, Context};
use async_nats::{
    Client, ConnectErrorKind, ConnectOptions, Event, HeaderMap, Message, Request, ServerAddr,
    Subscriber, subject::ToSubject,
};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::join_all;
use percent_encoding::percent_decode_str;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};

use crate::background::Background;
use crate::error::SetupError;
use crate::frame::MAX_DEADLINE;

/// How long a caller or a worker may take to reply to the other.
pub(crate) const REPLY_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a server may take to accept a connection and speak.
const GREETING_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a server may take to accept the login.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the client may take to reconnect by itself, before it is replaced.
const RECONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long to wait before connecting again.
const RETRY_DELAY: Duration = Duration::from_millis(200);

/// How often to say that no server is there.
const WARN_INTERVAL: Duration = Duration::from_secs(10);

/// How often an idle connection is tested. The third test without an answer ends it.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// How long the server may take to confirm a task before it is sent again.
const ACK_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the server may take to answer any other request. A cluster that loses a server is silent for some
/// seconds, until it has elected a leader, and does not answer older requests.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// The address of a NATS server or cluster, and the credentials for it.
///
/// Functions take a string as well, so most programs never name this type:
///
/// - `nats://host:4222`, or `nats://a:4222,nats://b:4222` for the servers of a cluster.
/// - `nats://user:password@host:4222`. Write `%40` for an `@` in the password, and so on.
/// - `tls://host:4222`, which requires TLS and a certificate that the system trusts, for all addresses in the
///   list. Servers that the cluster announces are then not used.
///
/// ```
/// use futureproof_nats::Server;
///
/// let server = Server::new("tls://queue.example:4222").credentials_file("worker.creds");
/// let secret = Server::new("nats://me:hush@queue:4222");
/// assert!(!format!("{secret:?}").contains("hush"));
/// ```
#[derive(Clone)]
pub struct Server {
    url: String,
    credentials: Option<PathBuf>,
    roots: Option<PathBuf>,
    client: Option<(PathBuf, PathBuf)>,
    connect_timeout: Duration,
}

impl Server {
    /// Creates a server with this address.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            credentials: None,
            roots: None,
            client: None,
            connect_timeout: Duration::from_secs(10),
        }
    }

    /// Sets how long [`connect`](crate::connect) and the start of a worker wait for a server that is not there yet.
    /// The default is 10 s. Both take up to 7 s longer if the server is there and does not answer.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout.min(MAX_DEADLINE);
        self
    }

    /// Uses a credentials file, with a JWT and a seed, as `nsc` makes it.
    pub fn credentials_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.credentials = Some(path.into());
        self
    }

    /// Trusts the certificate authorities in this PEM file, besides the system's.
    pub fn root_certificates(mut self, path: impl Into<PathBuf>) -> Self {
        self.roots = Some(path.into());
        self
    }

    /// Presents this client certificate, from PEM files with the certificate and its key.
    pub fn client_certificate(
        mut self,
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Self {
        self.client = Some((certificate.into(), key.into()));
        self
    }

    fn addresses(&self) -> Result<Addresses, SetupError> {
        let mut addresses = Addresses::default();
        for part in self.url.split(',') {
            // The parser's error may contain the password, so it is dropped.
            let parsed: ServerAddr = part.trim().parse().map_err(|_| SetupError::Address {
                reason: "write it as [nats|tls]://[user:password@]host[:port]".to_owned(),
            })?;
            if !matches!(parsed.scheme(), "nats" | "tls") {
                return Err(SetupError::Address {
                    reason: format!("`{}` is not supported, use nats or tls", parsed.scheme()),
                });
            }
            if let Some(user) = parsed.username() {
                let plain = |text| percent_decode_str(text).decode_utf8_lossy().into_owned();
                addresses.login = Some((plain(user), plain(parsed.password().unwrap_or(""))));
            }
            let host = match parsed.host() {
                v6 if v6.contains(':') => format!("[{v6}]"),
                host => host.to_owned(),
            };
            let bare = format!("{}://{host}:{}", parsed.scheme(), parsed.port());
            addresses.list.push(bare);
        }
        Ok(addresses)
    }
}

/// The addresses without user and password, and the login.
#[derive(Default)]
struct Addresses {
    list: Vec<String>,
    login: Option<(String, String)>,
}

impl From<&str> for Server {
    fn from(url: &str) -> Self {
        Self::new(url)
    }
}

impl From<String> for Server {
    fn from(url: String) -> Self {
        Self::new(url)
    }
}

impl From<&Server> for Server {
    fn from(server: &Server) -> Self {
        server.clone()
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses = self.addresses().map(|addresses| addresses.list);
        f.debug_struct("Server")
            .field("addresses", &addresses.unwrap_or_default())
            .field("credentials_file", &self.credentials)
            .field("root_certificates", &self.roots)
            .field("client_certificate", &self.client)
            .finish()
    }
}

/// A connection and its background thread.
pub(crate) struct Link {
    pub(crate) background: Background,
    pub(crate) session: Session,
    pub(crate) address: String,
}

/// The client as it stands. It is replaced if it takes too long to reconnect.
#[derive(Clone)]
pub(crate) struct Session {
    current: Arc<Mutex<(Client, Context)>>,
    /// How many times a connection was made.
    connects: watch::Receiver<u64>,
    /// How many times the client was replaced.
    replaced: Arc<AtomicU64>,
}

impl Session {
    pub(crate) fn client(&self) -> Client {
        self.current().0.clone()
    }

    pub(crate) fn context(&self) -> Context {
        self.current().1.clone()
    }

    pub(crate) fn connects(&self) -> watch::Receiver<u64> {
        self.connects.clone()
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.current().0.connection_state() == State::Connected
    }

    /// Publishes a message. Without a connection it is dropped after a while.
    pub(crate) async fn publish(&self, subject: impl ToSubject, payload: Bytes) {
        let client = self.client();
        // It waits for room in the buffer of the client, and a client that has been replaced never makes any.
        let _ = timeout(ACK_TIMEOUT, client.publish(subject, payload)).await;
    }

    /// Publishes a message and waits for the reply, for at most `REPLY_TIMEOUT`.
    pub(crate) async fn request(
        &self,
        subject: String,
        headers: HeaderMap,
        payload: Bytes,
    ) -> Result<Message, RequestErrorKind> {
        let client = self.client();
        let request = Request::new()
            .headers(headers)
            .payload(payload)
            .timeout(Some(REPLY_TIMEOUT));
        let reply = timeout(REPLY_TIMEOUT, client.send_request(subject, request)).await;
        reply.map_or(Err(RequestErrorKind::TimedOut), |reply| {
            reply.map_err(|error| error.kind())
        })
    }

    /// Handles each message of a subscription, and publishes what `handle` replies. Subscribes again if the client is
    /// replaced.
    pub(crate) async fn listen(
        self,
        subject: String,
        mut messages: Subscriber,
        handle: impl Fn(&Message) -> Bytes,
    ) {
        let mut connects = self.connects();
        let mut seen = self.replaced.load(Ordering::Relaxed);
        loop {
            let message = tokio::select! {
                message = messages.next() => message,
                Ok(()) = connects.changed() => {
                    let replaced = self.replaced.load(Ordering::Relaxed);
                    if replaced == seen {
                        continue;
                    }
                    seen = replaced;
                    None
                }
            };
            match message {
                Some(message) => {
                    let reply = handle(&message);
                    if let Some(to) = message.reply {
                        self.publish(to, reply).await;
                    }
                }
                None => {
                    match timeout(ACK_TIMEOUT, self.client().subscribe(subject.clone())).await {
                        Ok(Ok(again)) => messages = again,
                        _ => sleep(RETRY_DELAY).await,
                    }
                }
            }
        }
    }

    /// Finds out whether a server that does not answer is there at all, and drops the connection if not.
    pub(crate) async fn check(&self) {
        let client = self.client();
        // Nobody subscribes to it, which a server says at once.
        let echo = self.request(client.new_inbox(), HeaderMap::new(), Bytes::new());
        if matches!(echo.await, Err(RequestErrorKind::TimedOut)) && self.is_connected() {
            let _ = timeout(ACK_TIMEOUT, client.force_reconnect()).await;
        }
    }

    fn current(&self) -> MutexGuard<'_, (Client, Context)> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Link {
    pub(crate) fn open(server: &Server) -> Result<Self, SetupError> {
        let login = Login::read(server)?;
        let background = Background::start().map_err(SetupError::Background)?;
        let address = login.list.join(",");
        let wait = server.connect_timeout;
        let session = background.wait(login.open(wait));
        let session = session.ok_or_else(SetupError::ended)??;
        Ok(Self {
            background,
            session,
            address,
        })
    }
}

/// Addresses and credentials, for each new client.
struct Login {
    list: Vec<String>,
    user: Option<(String, String)>,
    server: Server,
    connects: watch::Sender<u64>,
    lost: Arc<Notify>,
}

impl Login {
    fn read(server: &Server) -> Result<Self, SetupError> {
        let addresses = server.addresses()?;
        Ok(Self {
            list: addresses.list,
            user: addresses.login,
            server: server.clone(),
            connects: watch::Sender::new(0),
            lost: Arc::default(),
        })
    }

    /// Connects, and sees to it that the session stays connected.
    async fn open(self, wait: Duration) -> Result<Session, SetupError> {
        let end = Instant::now() + wait;
        let mut is_told = false;
        let alive = loop {
            match self.alive().await {
                Ok(alive) => break alive,
                Err(error) if Instant::now() >= end => return Err(error),
                Err(error) => {
                    if !is_told {
                        is_told = true;
                        log::warn!(target: "futureproof", "{error}; waiting for it for up to {wait:?}");
                    }
                    sleep(RETRY_DELAY).await;
                }
            }
        };
        let client = self.log_in(alive).await?;
        let session = Session {
            current: Arc::new(Mutex::new(with_context(client))),
            connects: self.connects.subscribe(),
            replaced: Arc::default(),
        };
        // Ends with the background thread.
        tokio::spawn(self.keep(session.clone()));
        Ok(session)
    }

    /// Replaces a client that does not reconnect: it waits for ever for an address that accepts and says nothing.
    async fn keep(self, session: Session) {
        loop {
            self.lost.notified().await;
            sleep(RECONNECT_TIMEOUT).await;
            let mut warned = None::<Instant>;
            while !session.is_connected() {
                let client = match self.alive().await {
                    Ok(alive) => self.log_in(alive).await,
                    Err(error) => Err(error),
                };
                match client {
                    Ok(client) => {
                        *session.current() = with_context(client);
                        session.replaced.fetch_add(1, Ordering::Relaxed);
                        self.connects.send_modify(|count| *count += 1);
                    }
                    Err(error) => {
                        if warned.is_none_or(|warned| warned.elapsed() > WARN_INTERVAL) {
                            warned = Some(Instant::now());
                            log::warn!(target: "futureproof", "{error}; retrying");
                        }
                        sleep(RETRY_DELAY).await;
                    }
                }
            }
        }
    }

    /// Returns the addresses where a server speaks, within `GREETING_TIMEOUT`.
    async fn alive(&self) -> Result<Vec<String>, SetupError> {
        let greetings = join_all(self.list.iter().map(|address| greeting(address))).await;
        let mut source = None;
        let mut alive = Vec::new();
        for (address, greeting) in self.list.iter().zip(greetings) {
            match greeting {
                Ok(()) => alive.push(address.clone()),
                Err(error) => source = Some(error),
            }
        }
        match source {
            Some(error) if alive.is_empty() => Err(SetupError::Connect {
                address: self.list.join(","),
                source: Box::new(error),
            }),
            _ => Ok(alive),
        }
    }

    /// Connects to one of the addresses, within `LOGIN_TIMEOUT`.
    async fn log_in(&self, alive: Vec<String>) -> Result<Client, SetupError> {
        let address = self.list.join(",");
        let options = self.options().await?;
        match timeout(LOGIN_TIMEOUT, options.connect(alive)).await {
            Ok(Ok(client)) => Ok(client),
            Ok(Err(error)) => {
                let kind = error.kind();
                let source = Box::new(error);
                Err(match kind {
                    ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
                        SetupError::Refused { address, source }
                    }
                    _ => SetupError::Connect { address, source },
                })
            }
            Err(elapsed) => Err(SetupError::Connect {
                address,
                source: Box::new(elapsed),
            }),
        }
    }

    async fn options(&self) -> Result<ConnectOptions, SetupError> {
        let (connects, lost) = (self.connects.clone(), Arc::clone(&self.lost));
        let address = self.list.join(",");
        let mut options = ConnectOptions::new()
            .name("futureproof")
            .request_timeout(Some(REQUEST_TIMEOUT))
            .connection_timeout(GREETING_TIMEOUT)
            .ping_interval(PING_INTERVAL)
            // Reconnects to a restarted server soon, and does not flood one that stays down.
            .reconnect_delay_callback(|tries| {
                Duration::from_millis(100 * tries.clamp(1, 10) as u64)
            })
            .event_callback(move |event| {
                match &event {
                    Event::Connected => connects.send_modify(|count| *count += 1),
                    // Such as a missing permission. The server reports it nowhere else.
                    Event::ServerError(_) | Event::ClientError(_) | Event::SlowConsumer(_) => {
                        log::warn!(target: "futureproof", "{address}: {event}");
                    }
                    Event::Disconnected => {
                        log::info!(target: "futureproof", "{address}: connection lost, reconnecting");
                        lost.notify_one();
                    }
                    event => log::debug!(target: "futureproof", "{address}: {event}"),
                }
                async {}
            });
        if self
            .list
            .iter()
            .any(|address| address.starts_with("tls://"))
        {
            // Announced servers may lack TLS, and the announcement may be forged.
            options = options.require_tls(true).ignore_discovered_servers();
        }
        if let Some((user, password)) = &self.user {
            options = options.user_and_password(user.clone(), password.clone());
        }
        if let Some(path) = &self.server.roots {
            options = options.add_root_certificates(path.clone());
        }
        if let Some((certificate, key)) = &self.server.client {
            options = options.add_client_certificate(certificate.clone(), key.clone());
        }
        if let Some(path) = &self.server.credentials {
            let read = options.credentials_file(path).await;
            options = read.map_err(SetupError::Credentials)?;
        }
        Ok(options)
    }
}

fn with_context(client: Client) -> (Client, Context) {
    let context = jetstream::ContextBuilder::new().ack_timeout(ACK_TIMEOUT);
    (client.clone(), context.build(client))
}

/// Waits until the server at this address says what every NATS server says first. The client itself would wait for
/// ever.
async fn greeting(address: &str) -> io::Result<()> {
    let greeted = timeout(GREETING_TIMEOUT, async {
        let host = address.rsplit("//").next().unwrap_or(address);
        let mut stream = TcpStream::connect(host).await?;
        let mut first = [0; 4];
        stream.read_exact(&mut first).await?;
        Ok(first)
    });
    match greeted.await {
        Ok(Ok(first)) if first == *b"INFO" => Ok(()),
        Ok(Ok(_)) => Err(io::Error::other("no NATS server speaks there")),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("it says nothing within {GREETING_TIMEOUT:?}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_login_is_taken_out_of_the_address() {
        let addresses = Server::new("nats://me:a%40b@host,tls://[::1]:4333")
            .addresses()
            .unwrap();
        assert_eq!(addresses.list, ["nats://host:4222", "tls://[::1]:4333"]);
        assert_eq!(addresses.login, Some(("me".to_owned(), "a@b".to_owned())));
    }

    #[test]
    fn no_password_is_shown() {
        for url in [
            "nats://me:hush@host",
            "nats://me:hush@host:x",
            "ftp://me:hush@host",
            "nats://me:hush@",
        ] {
            let server = Server::new(url);
            assert!(!format!("{server:?}").contains("hush"), "{url}");
            if let Err(error) = server.addresses() {
                assert!(!format!("{error:?} {error}").contains("hush"), "{url}");
            }
        }
    }
}
