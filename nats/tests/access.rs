//! Users, permissions and TLS, as the documentation says.

mod common;
#[path = "common/operator.rs"]
mod operator;

use common::*;
use futureproof_nats::{RemoteError, Server, SetupError, Worker, connect};
use operator::Operator;
use tempfile::TempDir;

#[test]
fn the_documented_permissions_are_enough() {
    let _dog = watchdog(120);
    let dir = TempDir::new().unwrap();
    let config = dir.path().join("nats.conf");
    let text = r#"
        authorization { users: [
            { user: caller, password: c, permissions: {
                publish: ["futureproof.safe.task.*", "futureproof.safe.over.*", "$JS.API.>", "_INBOX.>"],
                subscribe: ["futureproof.safe.answer.*", "_INBOX.>"] } }
            { user: worker, password: w, permissions: {
                publish: ["futureproof.safe.answer.*", "$JS.API.>", "_INBOX.>", "$JS.ACK.futureproof-safe.>"],
                subscribe: ["futureproof.safe.over.*", "_INBOX.>"] } }
        ] }
    "#;
    std::fs::write(&config, text).unwrap();
    let server = NatsServer::start_with(&["-c", config.to_str().unwrap()]);
    let at = server.url().replace("nats://", "");
    let worker = Worker::new(format!("nats://worker:w@{at}"), "safe").num_threads(1);
    let worker = LocalWorker::start(worker, work);
    let caller = format!("nats://caller:c@{at}");
    let safe = remote(&caller, "safe");
    for n in 0..10 {
        assert_eq!(safe.call(&Job::Double(n)).unwrap().output.number, n * 2);
    }
    assert_eq!(
        safe.call(&Job::Fail(1)),
        Err(RemoteError::Task("1 is refused".to_owned()))
    );
    worker.stop();
    // Acknowledged, or they would still be there.
    eventually("the queue is empty", || queued(&caller, "safe") == 0);
}

#[test]
fn tls_is_spoken_where_the_address_asks_for_it() {
    let _dog = watchdog(120);
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    std::fs::write(path("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(path("key.pem"), made.signing_key.serialize_pem()).unwrap();
    let flags = [
        "--tls",
        "--tlscert",
        &path("cert.pem"),
        "--tlskey",
        &path("key.pem"),
    ];
    let server = NatsServer::start_with(&flags);
    let url = server.url().replace("nats://", "tls://");

    let trusting = Server::new(&*url).root_certificates(path("cert.pem"));
    let _worker = LocalWorker::start(Worker::new(&trusting, "tls").num_threads(1), work);
    let tls = connect(&trusting)
        .unwrap()
        .function::<Job, Done, String>("tls")
        .start()
        .unwrap();
    assert_eq!(tls.call(&Job::Double(4)).unwrap().output.number, 8);
    // Nobody vouches for it.
    assert!(connect(&*url).is_err());
}

#[test]
fn a_client_certificate_is_shown_where_the_server_asks_for_one() {
    let _dog = watchdog(120);
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    for (name, of) in [("server", "127.0.0.1"), ("client", "client")] {
        let made = rcgen::generate_simple_self_signed([of.to_owned()]).unwrap();
        std::fs::write(path(&format!("{name}.pem")), made.cert.pem()).unwrap();
        let key = made.signing_key.serialize_pem();
        std::fs::write(path(&format!("{name}.key")), key).unwrap();
    }
    let flags = [
        "--tlsverify",
        "--tlscert",
        &path("server.pem"),
        "--tlskey",
        &path("server.key"),
        "--tlscacert",
        &path("client.pem"),
    ];
    let server = NatsServer::start_with(&flags);
    let url = server.url().replace("nats://", "tls://");

    let nobody = Server::new(&*url).root_certificates(path("server.pem"));
    assert!(connect(&nobody).is_err());
    let known = nobody.client_certificate(path("client.pem"), path("client.key"));
    let _worker = LocalWorker::start(Worker::new(&known, "mutual").num_threads(1), work);
    let mutual = connect(&known)
        .unwrap()
        .function::<Job, Done, String>("mutual")
        .start()
        .unwrap();
    assert_eq!(mutual.call(&Job::Double(4)).unwrap().output.number, 8);
}

#[test]
fn tls_is_not_given_up_where_the_server_has_none() {
    let _dog = watchdog(120);
    let server = NatsServer::start();
    assert!(connect(server.url().replace("nats://", "tls://")).is_err());
}

#[test]
fn a_credentials_file_that_is_not_there_is_named_as_the_reason() {
    let _dog = watchdog(120);
    let server = NatsServer::start();
    let error = connect(Server::new(server.url()).credentials_file("/nowhere")).unwrap_err();
    assert!(error.to_string().contains("credentials"), "{error}");
}

#[test]
fn a_credentials_file_lets_its_user_in_and_no_other() {
    let _dog = watchdog(120);
    let dir = TempDir::new().unwrap();
    let file = |name: &str, text: String| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let operator = Operator::new();
    let config = file("nats.conf", operator.config());
    let server = NatsServer::start_with(&["-c", config.to_str().unwrap()]);
    let with = |path| Server::new(server.url()).credentials_file(path);

    let user = with(file("user.creds", operator.credentials()));
    let worker = LocalWorker::start(Worker::new(&user, "signed").num_threads(1), work);
    let signed = connect(&user)
        .unwrap()
        .function::<Job, Done, String>("signed")
        .start()
        .unwrap();
    assert_eq!(signed.call(&Job::Double(4)).unwrap().output.number, 8);
    assert_eq!(
        signed.call(&Job::Fail(1)),
        Err(RemoteError::Task("1 is refused".to_owned()))
    );
    worker.stop();

    // A user of an account that this operator has not signed, and a token without its key.
    let unknown = file("unknown.creds", Operator::new().credentials());
    let stolen = file("stolen.creds", operator.stolen_credentials());
    for credentials in [unknown, stolen] {
        let error = connect(with(credentials)).unwrap_err();
        assert!(matches!(error, SetupError::Refused { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("credentials"), "{text}");
    }
    assert!(matches!(
        connect(server.url()),
        Err(SetupError::Refused { .. })
    ));
}
