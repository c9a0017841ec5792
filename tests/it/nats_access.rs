//! The configurations of NATS that the project ships: with their users everything works, and each
//! may do no more than it must.

use std::{fmt::Write, time::Duration};

use async_nats::{
    Client, ConnectOptions,
    jetstream::{self, Context, context::ContextBuilder},
};
use futures_util::StreamExt;
use tests::{
    nats::NatsServer,
    program::{Launch, Signal},
    stack::{self, CLIENT_KEY, Sim, is_complete, is_up},
    wait::{SOON, eventually},
    ws_client::TestClient,
};

use crate::{
    doc_snippets::{document, replaced},
    events::trade,
};

const STREAM: &str = "POLYGON_STOCKS";
/// How long a refused request is waited for. NATS does not answer it.
const REFUSED: Duration = Duration::from_secs(1);

/// The users of the shipped configuration, in a file without includes.
pub(crate) fn users() -> String {
    let users = replaced(&document("deploy/nats/users.conf"), "include passwords.conf\n", "");
    let mut text = document("deploy/nats/passwords.conf.example");
    // It is written behind other settings.
    text.insert(0, '\n');
    write!(text, "{users}").expect("write to a text");
    text
}

/// A server with them, and with JetStream.
pub(crate) async fn server() -> NatsServer {
    let jetstream = "jetstream { store_dir: \"$STORE\", max_file: 100G, max_mem: 1G }";
    NatsServer::with(&format!("{jetstream}\n{}", users())).await
}

/// The password of a user in the example.
pub(crate) fn password(user: &str) -> String {
    format!("change-me-{user}")
}

async fn client(nats: &NatsServer, user: &str) -> Client {
    let options = ConnectOptions::with_user_and_password(user.to_owned(), password(user));
    nats.client_with(options).await
}

fn context(client: &Client) -> Context {
    ContextBuilder::new().timeout(REFUSED).ack_timeout(REFUSED).build(client.clone())
}

/// A file of credentials beside a program.
pub(crate) fn with_creds(launch: Launch, user: &str) -> Launch {
    let file = launch.dir().join("nats.creds");
    launch
        .file("nats.creds", &format!("{user}:{}\n", password(user)))
        .env("NATS_CREDS", file.display())
}

#[tokio::test]
async fn with_the_shipped_users_everything_works_and_nothing_else_does() {
    let nats = server().await;
    let sim = Sim::start().await;
    let firehose = || {
        let launch = stack::firehose(&sim.url("stocks")).env("NATS_URL", nats.url());
        with_creds(launch.env("LEASE", "nats"), "firehose")
    };
    let mut firehoses = [firehose().start().await, firehose().start().await];
    let proxy = with_creds(stack::filtered_on_nats(&nats.url()), "proxy").start().await;
    is_up(&proxy).await;
    is_complete(&proxy).await;
    let mut session = TestClient::connect_to(proxy.addr(), "/session/alpha/stocks").await;
    session.log_in(CLIENT_KEY).await;
    session.subscribe("T.AAPL").await;
    session
        .expect_status("session", "nothing is remembered under the name alpha: live events follow")
        .await;
    sim.handle.publish(&[trade("AAPL", 0)]);
    session.expect_objects(&[trade("AAPL", 0)]).await;
    let operator = client(&nats, "operator").await;
    let saved = jetstream::new(operator.clone());
    eventually(SOON, "the session is saved", async || {
        session.ping(b"read").await;
        let store = saved.get_key_value("POLYGON_SESSIONS").await;
        let Ok(store) = store else { return false };
        let Ok(keys) = store.keys().await else { return false };
        keys.count().await == 1
    })
    .await;
    eventually(SOON, "health lists the others", async || {
        proxy.health().await["peers"].as_array().is_some_and(|peers| peers.len() == 2)
    })
    .await;
    // Whichever holds the lease is killed, and the other one goes on.
    for firehose in &mut firehoses {
        if firehose.health().await["lease"]["role"] == "holder" {
            firehose.signal(Signal::SIGKILL);
            firehose.wait_exit(SOON).await;
            break;
        }
    }
    is_up(&proxy).await;
    drop(session);

    let before = saved.get_stream(STREAM).await.expect("the stream").cached_info().clone();
    for user in ["proxy", "firehose"] {
        let client = client(&nats, user).await;
        let context = context(&client);
        assert!(context.delete_stream(STREAM).await.is_err(), "{user} removes the stream");
        let mut changed = before.config.clone();
        changed.max_bytes = 1_000;
        assert!(context.update_stream(changed).await.is_err(), "{user} changes the stream");
        let stream = context.get_stream(STREAM).await.expect("whoever reads it sees it");
        assert!(stream.purge().await.is_err(), "{user} empties the stream");
        assert!(stream.delete_message(1).await.is_err(), "{user} removes a message");
        assert!(
            context.delete_key_value("POLYGON_LEASE").await.is_err(),
            "{user} removes the lease"
        );
    }
    let proxys = client(&nats, "proxy").await;
    for subject in [
        "polygon.stocks.data",
        "polygon.stocks.state",
        "polygon.stocks.answers.x",
        "$KV.POLYGON_LEASE.stocks",
    ] {
        let sent = context(&proxys).publish(subject, "forged".into()).await.expect("it is sent");
        assert!(sent.await.is_err(), "a proxy writes to {subject}");
    }
    let mut other = before.config.clone();
    (other.name, other.subjects) = ("OTHER".to_owned(), vec!["other".to_owned()]);
    assert!(context(&proxys).create_stream(other).await.is_err(), "a proxy makes a stream");
    let firehoses = client(&nats, "firehose").await;
    let sent = context(&firehoses).publish("$KV.POLYGON_SESSIONS.stocks.x", "forged".into()).await;
    assert!(sent.expect("it is sent").await.is_err(), "a firehose writes a session");
    let after = saved.get_stream(STREAM).await.expect("the stream").cached_info().clone();
    assert_eq!(after.config, before.config);
}
