//! Keys and tokens as `nsc` makes them: an operator signs accounts, and an account its users.

use std::time::{SystemTime, UNIX_EPOCH};

use data_encoding::BASE64URL_NOPAD;
use nkeys::KeyPair;

/// An operator with one account that may use JetStream.
pub(crate) struct Operator {
    key: KeyPair,
    account: KeyPair,
}

impl Operator {
    pub(crate) fn new() -> Self {
        Self {
            key: KeyPair::new_operator(),
            account: KeyPair::new_account(),
        }
    }

    /// The server's configuration: it trusts the operator, and knows its accounts. JetStream wants one of its own.
    pub(crate) fn config(&self) -> String {
        let operator = token(&self.key, &self.key, r#""type":"operator""#);
        let limits = r#""subs":-1,"data":-1,"payload":-1,"imports":-1,"exports":-1,"wildcards":true,"conn":-1,"leaf":-1"#;
        let storage = r#""mem_storage":-1,"disk_storage":-1,"streams":-1,"consumer":-1"#;
        let claims = |limits: String| format!(r#""type":"account","limits":{{{limits}}}"#);
        let account = claims(format!("{limits},{storage}"));
        let account = token(&self.key, &self.account, &account);
        let system_key = KeyPair::new_account();
        let system = token(&self.key, &system_key, &claims(limits.to_owned()));
        let (id, system_id) = (self.account.public_key(), system_key.public_key());
        format!(
            "operator: {operator}\nsystem_account: {system_id}\nresolver: MEMORY\n\
             resolver_preload: {{ {id}: {account}, {system_id}: {system} }}\n"
        )
    }

    /// The content of a credentials file for a new user of the account.
    pub(crate) fn credentials(&self) -> String {
        let user = KeyPair::new_user();
        credentials(&self.user_token(&user), &user)
    }

    /// Somebody else's token, with a key that is not theirs.
    pub(crate) fn stolen_credentials(&self) -> String {
        credentials(&self.user_token(&KeyPair::new_user()), &KeyPair::new_user())
    }

    fn user_token(&self, user: &KeyPair) -> String {
        let claims = r#""type":"user","subs":-1,"data":-1,"payload":-1"#;
        token(&self.account, user, claims)
    }
}

fn token(issuer: &KeyPair, subject: &KeyPair, claims: &str) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let (by, of) = (issuer.public_key(), subject.public_key());
    let claims = format!(
        r#"{{"jti":"{of}","iat":{now},"iss":"{by}","sub":"{of}","name":"test","nats":{{"version":2,{claims}}}}}"#
    );
    let header = BASE64URL_NOPAD.encode(br#"{"typ":"JWT","alg":"ed25519-nkey"}"#);
    let signed = format!("{header}.{}", BASE64URL_NOPAD.encode(claims.as_bytes()));
    let signature = issuer.sign(signed.as_bytes()).unwrap();
    format!("{signed}.{}", BASE64URL_NOPAD.encode(&signature))
}

fn credentials(token: &str, user: &KeyPair) -> String {
    let seed = user.seed().unwrap();
    format!(
        "-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )
}
