//! Connections, failover between endpoints, login, and what can go wrong.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::problem::Problem;
use crate::spec::{Password, Secret, Secrets};

/// Time for a TCP and TLS handshake inside one network.
const CONNECT: Duration = Duration::from_secs(1);
/// Longer than an etcd election (1 s), so that a call rides one out; shorter than anyone's patience.
const REQUEST: Duration = Duration::from_secs(3);

/// One member's client port. The certificate behind it must name the slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Slot of the member.
    pub slot: String,
    /// Its address.
    pub address: SocketAddr,
}

impl Endpoint {
    /// The client port of `slot` at `ip`.
    pub fn new(slot: &str, ip: IpAddr) -> Self {
        Self { slot: slot.to_owned(), address: SocketAddr::new(ip, 2379) }
    }
}

/// A login.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// User of etcd.
    pub user: String,
    /// Its password.
    pub password: Secret,
}

impl Credentials {
    /// `user` with `password`.
    pub fn new(user: &str, password: &Secret) -> Self {
        Self { user: user.to_owned(), password: password.clone() }
    }

    /// The agent's own on this node: voters may do anything, every other node has a user of its own that may write
    /// what concerns it alone.
    pub fn of_agent(slot: &str, secrets: &Secrets) -> Result<Self, Problem> {
        match secrets.passwords.get(Password::EtcdAgent) {
            Ok(password) => Ok(Self::new("agent", password)),
            Err(_) => Ok(Self::new(&super::node_user(slot), secrets.passwords.get(Password::EtcdNode)?)),
        }
    }
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No endpoint could answer: not running, no quorum, no network. May go away by itself.
    #[error("etcd on {endpoint}: {why}")]
    Unavailable {
        /// The last endpoint tried.
        endpoint: String,
        /// What it said.
        why: String,
        /// Whether etcd may have acted on the call all the same.
        ambiguous: bool,
    },
    /// etcd answered no.
    #[error("etcd refused {call}: {message}")]
    Refused {
        /// The call, as in the URL.
        call: String,
        /// gRPC status code.
        code: u32,
        /// etcd's message.
        message: String,
    },
    /// An answer this client does not understand.
    #[error("etcd on {endpoint} answered {call} with something unexpected: {why}")]
    Garbled {
        /// Who answered.
        endpoint: String,
        /// The call.
        call: String,
        /// What is wrong with the answer.
        why: String,
    },
}

/// etcd's refusals the agent acts upon. They are constants in etcd's `rpctypes`; the gateway shows nothing else.
pub(crate) mod refusal {
    pub(crate) const AUTH_OFF: &str = "etcdserver: authentication is not enabled";
    pub(crate) const USER_EXISTS: &str = "etcdserver: user name already exists";
    pub(crate) const ROLE_EXISTS: &str = "etcdserver: role name already exists";
    pub(crate) const NO_USER: &str = "etcdserver: user name is empty";
    pub(crate) const WRONG_PASSWORD: &str = "etcdserver: authentication failed, invalid user ID or password";
    pub(crate) const BAD_TOKEN: &str = "etcdserver: invalid auth token";
    /// Users or roles changed between the check and the use of a token: a new token cures it.
    pub(crate) const OLD_REVISION: &str = "etcdserver: revision of auth store is old";
    pub(crate) const NO_LEASE: &str = "etcdserver: requested lease not found";
}

impl Error {
    /// Whether etcd refused with this message.
    pub(crate) fn refused(&self, with: &str) -> bool {
        matches!(self, Self::Refused { message, .. } if message == with)
    }

    /// Whether waiting may help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}

/// A connection to one cluster.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    streams: reqwest::Client,
    endpoints: Vec<Endpoint>,
    preferred: AtomicUsize,
    credentials: Option<Credentials>,
    pub(super) token: Mutex<Option<String>>,
}

impl Client {
    /// Endpoints in order of preference; `credentials` once authentication is on.
    pub fn new(
        endpoints: Vec<Endpoint>,
        tls: rustls::ClientConfig,
        credentials: Option<Credentials>,
    ) -> anyhow::Result<Self> {
        anyhow::ensure!(!endpoints.is_empty(), "no etcd endpoints");
        let builder = || {
            // Slots are resolved here and nowhere else: no DNS, and the certificate is checked against the slot.
            let mut builder = reqwest::Client::builder()
                .no_proxy()
                .redirect(reqwest::redirect::Policy::none())
                .connect_timeout(CONNECT)
                .pool_max_idle_per_host(1)
                .http1_only()
                .tls_backend_preconfigured(tls.clone());
            for endpoint in &endpoints {
                builder = builder.resolve(&endpoint.slot, endpoint.address);
            }
            builder
        };
        let (http, streams) = (builder().timeout(REQUEST).build()?, builder().build()?);
        Ok(Self { http, streams, endpoints, preferred: AtomicUsize::new(0), credentials, token: Mutex::new(None) })
    }

    /// The same cluster seen by another user (or none).
    pub fn with_credentials(&self, credentials: Option<Credentials>) -> Self {
        Self {
            http: self.http.clone(),
            streams: self.streams.clone(),
            endpoints: self.endpoints.clone(),
            preferred: AtomicUsize::new(self.preferred.load(Ordering::Relaxed)),
            credentials,
            token: Mutex::new(None),
        }
    }

    /// The members this client knows.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// A call that may be repeated without harm (or whose caller recognises its own earlier success).
    pub(super) async fn call<T: DeserializeOwned>(&self, call: &str, body: &Value) -> Result<T, Error> {
        let first = self.preferred.load(Ordering::Relaxed);
        let mut last = None;
        for step in 0..self.endpoints.len() {
            let index = (first + step) % self.endpoints.len();
            match self.logged_in(&self.endpoints[index], call, body).await {
                Err(error @ Error::Unavailable { .. }) => last = Some(error),
                answer => {
                    self.preferred.store(index, Ordering::Relaxed);
                    return answer;
                }
            }
        }
        // Every endpoint failed: start with our own again next time.
        self.preferred.store(0, Ordering::Relaxed);
        Err(last.unwrap_or_else(|| unavailable("no endpoint", "none is configured", false)))
    }

    /// A call that must reach etcd at most once (membership changes).
    pub(super) async fn call_once<T: DeserializeOwned>(&self, call: &str, body: &Value) -> Result<T, Error> {
        let first = self.preferred.load(Ordering::Relaxed);
        let mut last = None;
        for step in 0..self.endpoints.len() {
            let index = (first + step) % self.endpoints.len();
            match self.logged_in(&self.endpoints[index], call, body).await {
                Err(error @ Error::Unavailable { ambiguous: false, .. }) => last = Some(error),
                answer => return answer,
            }
        }
        Err(last.unwrap_or_else(|| unavailable("no endpoint", "none is configured", false)))
    }

    /// A call to one member and no other.
    pub(super) async fn call_at<T: DeserializeOwned>(&self, slot: &str, call: &str, body: &Value) -> Result<T, Error> {
        match self.endpoints.iter().find(|e| e.slot == slot) {
            Some(endpoint) => self.logged_in(endpoint, call, body).await,
            None => Err(unavailable(slot, "is not a known endpoint", false)),
        }
    }

    /// A call to one member that asks for no login.
    pub(super) async fn open_call_at<T: DeserializeOwned>(
        &self,
        slot: &str,
        call: &str,
        body: &Value,
    ) -> Result<T, Error> {
        match self.endpoints.iter().find(|e| e.slot == slot) {
            Some(endpoint) => self.post(endpoint, call, body, None).await,
            None => Err(unavailable(slot, "is not a known endpoint", false)),
        }
    }

    /// A streaming call; the answer's body arrives piece by piece and has no deadline.
    pub(super) async fn stream(&self, call: &str, body: &Value) -> Result<reqwest::Response, Error> {
        let endpoint = &self.endpoints[self.preferred.load(Ordering::Relaxed) % self.endpoints.len()];
        let token = self.token_from(endpoint).await?;
        let mut request = self.streams.post(url(endpoint, call)).json(body);
        if let Some(token) = token {
            request = request.header("Authorization", token);
        }
        let response = tokio::time::timeout(REQUEST, request.send())
            .await
            .map_err(|_| unavailable(&endpoint.slot, "no answer", false))?
            .map_err(|e| transport(&endpoint.slot, &e))?;
        match response.status() {
            status if status.is_success() => Ok(response),
            status => Err(unavailable(&endpoint.slot, &format!("{call} answered {status}"), false)),
        }
    }

    async fn logged_in<T: DeserializeOwned>(&self, endpoint: &Endpoint, call: &str, body: &Value) -> Result<T, Error> {
        let token = self.token_from(endpoint).await?;
        match self.post(endpoint, call, body, token.as_deref()).await {
            Err(error) if error.refused(refusal::BAD_TOKEN) || error.refused(refusal::OLD_REVISION) => {
                self.forget_token();
                let token = self.token_from(endpoint).await?;
                self.post(endpoint, call, body, token.as_deref()).await
            }
            answer => answer,
        }
    }

    async fn token_from(&self, endpoint: &Endpoint) -> Result<Option<String>, Error> {
        let Some(credentials) = &self.credentials else { return Ok(None) };
        if let Some(token) = self.token.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            return Ok(Some(token));
        }
        #[derive(serde::Deserialize)]
        struct Authenticated {
            token: String,
        }
        let body = json!({"name": credentials.user, "password": credentials.password.expose()});
        let answer: Authenticated = self.post(endpoint, "auth/authenticate", &body, None).await?;
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer.token.clone());
        Ok(Some(answer.token))
    }

    pub(super) fn forget_token(&self) {
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    async fn post<T: DeserializeOwned>(
        &self,
        endpoint: &Endpoint,
        call: &str,
        body: &Value,
        token: Option<&str>,
    ) -> Result<T, Error> {
        let mut request = self.http.post(url(endpoint, call)).json(body);
        if let Some(token) = token {
            request = request.header("Authorization", token);
        }
        let response = request.send().await.map_err(|e| transport(&endpoint.slot, &e))?;
        let status = response.status();
        let bytes = response.bytes().await.map_err(|e| transport(&endpoint.slot, &e))?;
        if status.is_success() {
            return serde_json::from_slice(&bytes).map_err(|e| Error::Garbled {
                endpoint: endpoint.slot.clone(),
                call: call.to_owned(),
                why: e.to_string(),
            });
        }
        Err(refused(endpoint, call, &bytes, status))
    }
}

/// gRPC codes that say "not now" rather than "no": deadline exceeded, unavailable, and unknown from a dying server.
const NOT_NOW: [u32; 2] = [4, 14];

fn refused(endpoint: &Endpoint, call: &str, bytes: &[u8], status: reqwest::StatusCode) -> Error {
    #[derive(serde::Deserialize)]
    struct Refusal {
        #[serde(default)]
        code: u32,
        #[serde(default)]
        message: String,
        // Before 3.6 some answers carry only this older field.
        #[serde(default)]
        error: String,
    }
    match serde_json::from_slice::<Refusal>(bytes) {
        Ok(refusal) => {
            let message = if refusal.message.is_empty() { refusal.error } else { refusal.message };
            if NOT_NOW.contains(&refusal.code) {
                return unavailable(&endpoint.slot, &message, true);
            }
            Error::Refused { call: call.to_owned(), code: refusal.code, message }
        }
        Err(_) => {
            unavailable(&endpoint.slot, &format!("{call} answered {status}: {}", String::from_utf8_lossy(bytes)), true)
        }
    }
}

fn url(endpoint: &Endpoint, call: &str) -> String {
    format!("https://{}:{}/v3/{call}", endpoint.slot, endpoint.address.port())
}

fn unavailable(endpoint: &str, why: &str, ambiguous: bool) -> Error {
    Error::Unavailable { endpoint: endpoint.to_owned(), why: why.to_owned(), ambiguous }
}

fn transport(endpoint: &str, error: &reqwest::Error) -> Error {
    unavailable(endpoint, &plain(error), !error.is_connect())
}

/// The innermost reason: "connection refused" rather than four layers of "error sending request".
pub(crate) fn plain(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".to_owned();
    }
    let mut inner: &dyn std::error::Error = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    let text = inner.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}
