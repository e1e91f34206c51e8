//! The server's address and login.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use async_nats::jetstream::{self, Context};
use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event, ServerAddr};
use percent_encoding::percent_decode_str;
use tokio::sync::watch;

use crate::background::Background;
use crate::error::SetupError;

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
}

impl Server {
    /// Creates a server with this address.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            credentials: None,
            roots: None,
            client: None,
        }
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

/// An open connection and its background thread.
pub(crate) struct Link {
    pub(crate) background: Background,
    pub(crate) client: Client,
    pub(crate) context: Context,
    /// How many times the connection was made.
    pub(crate) connects: watch::Receiver<u64>,
    pub(crate) address: String,
}

impl Link {
    pub(crate) fn open(server: &Server) -> Result<Self, SetupError> {
        let addresses = server.addresses()?;
        let address = addresses.list.join(",");
        let background = Background::start().map_err(SetupError::Background)?;
        let (sender, connects) = watch::channel(0);
        let server_address = address.clone();
        let mut options = ConnectOptions::new()
            .name("futureproof")
            .request_timeout(Some(REQUEST_TIMEOUT))
            // Reconnects to a restarted server soon, and does not flood one that stays down.
            .reconnect_delay_callback(|tries| {
                Duration::from_millis(100 * tries.clamp(1, 10) as u64)
            })
            .event_callback(move |event| {
                match &event {
                    Event::Connected => sender.send_modify(|count| *count += 1),
                    // Such as a missing permission. The server reports it nowhere else.
                    Event::ServerError(_) | Event::ClientError(_) | Event::SlowConsumer(_) => {
                        log::warn!(target: "futureproof", "{server_address}: {event}");
                    }
                    Event::Disconnected => {
                        log::info!(target: "futureproof", "{server_address}: connection lost, reconnecting");
                    }
                    event => log::debug!(target: "futureproof", "{server_address}: {event}"),
                }
                async {}
            });
        if addresses
            .list
            .iter()
            .any(|address| address.starts_with("tls://"))
        {
            // Announced servers may lack TLS, and the announcement may be forged.
            options = options.require_tls(true).ignore_discovered_servers();
        }
        if let Some((user, password)) = addresses.login {
            options = options.user_and_password(user, password);
        }
        if let Some(path) = &server.roots {
            options = options.add_root_certificates(path.clone());
        }
        if let Some((certificate, key)) = &server.client {
            options = options.add_client_certificate(certificate.clone(), key.clone());
        }
        let credentials = server.credentials.clone();
        let list = addresses.list;
        let client = background.wait(async move {
            if let Some(path) = credentials {
                let read = options.credentials_file(path).await;
                options = read.map_err(SetupError::Credentials)?;
            }
            let client = options.connect(list.clone()).await;
            let client = client.map_err(|error| {
                let (address, kind) = (list.join(","), error.kind());
                let source = Box::new(error);
                match kind {
                    ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
                        SetupError::Refused { address, source }
                    }
                    _ => SetupError::Connect { address, source },
                }
            })?;
            // This spawns a task, so it needs the runtime.
            let context = jetstream::ContextBuilder::new().ack_timeout(ACK_TIMEOUT);
            Ok((client.clone(), context.build(client)))
        });
        let (client, context) = client.ok_or_else(SetupError::ended)??;
        Ok(Self {
            background,
            client,
            context,
            connects,
            address,
        })
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
