//! The handshake with any bytes: inputs of `fuzz/corpus/handshake`, unchanged and changed at random
//! places, sent to both ports of running programs. `fuzz-targets` defines the right answers.

use std::{fs, net::SocketAddr, path::Path, time::Duration};

use fastrand::Rng;
use tests::{stack::Stack, ws_client::TestClient};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};

use crate::{seed, tiers::ports};

/// Inputs chosen at random from the corpus, beside the first one, which is a valid handshake.
const INPUTS: usize = 40;
/// Changed inputs per chosen input.
const CHANGED: usize = 10;
/// Connections at a time.
const AT_ONCE: usize = 16;
/// An answer comes within this time. Half a request gets none.
const ANSWER: Duration = Duration::from_millis(30);

fn corpus() -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/handshake");
    let entries = fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).expect("read an input")).collect()
}

/// Sends this and returns the bytes that come back within a moment.
async fn say(addr: SocketAddr, input: Vec<u8>) -> Vec<u8> {
    let mut stream = TcpStream::connect(addr).await.expect("connect");
    let mut answer = Vec::new();
    let exchange = async {
        // The program may end the connection before it has read everything.
        if stream.write_all(&input).await.is_ok() {
            while stream.read_buf(&mut answer).await.is_ok_and(|read| read > 0) {}
        }
    };
    // The timeout is expected: it shows that nothing more comes.
    let _ = timeout(ANSWER, exchange).await;
    answer
}

#[tokio::test]
async fn whatever_is_said_is_answered_in_http_or_not_at_all() {
    let seed = seed::of_this_run();
    // Printed when the test fails.
    println!("TEST_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let stack = Stack::start().await;
    let mut corpus = corpus();
    assert!(corpus.len() > INPUTS);
    rng.shuffle(&mut corpus[1..]);
    corpus.truncate(1 + INPUTS);
    let mut inputs = corpus.clone();
    for input in &corpus {
        for _ in 0..CHANGED {
            let mut changed = input.clone();
            for _ in 0..rng.usize(1..4) {
                let at = rng.usize(..=changed.len());
                let end = (at + rng.usize(..6)).min(changed.len());
                let piece = match rng.u8(..3) {
                    0 => Vec::new(),
                    1 => vec![rng.u8(..); rng.usize(1..4)],
                    _ => changed[at..end].repeat(3),
                };
                changed.splice(at..end, piece);
            }
            inputs.push(changed);
        }
    }
    let mut upgraded = 0;
    for (addr, _) in ports(&stack) {
        for portion in inputs.chunks(AT_ONCE) {
            let mut said = JoinSet::new();
            for input in portion.iter().cloned() {
                said.spawn(say(addr, input));
            }
            while let Some(answer) = said.join_next().await {
                let answer = answer.expect("an exchange");
                let shown = String::from_utf8_lossy(&answer[..answer.len().min(200)]).into_owned();
                assert!(answer.is_empty() || answer.starts_with(b"HTTP/1."), "{shown}");
                upgraded += usize::from(answer.starts_with(b"HTTP/1.1 101"));
            }
        }
    }
    println!("{} inputs at both ports, {upgraded} upgraded", inputs.len());
    // The valid handshake at both ports. How many more there are is chance.
    assert!(upgraded >= 2, "{upgraded} upgraded");
    for (n, (addr, key)) in ports(&stack).into_iter().enumerate() {
        TestClient::login(addr, key).await.subscribe("T.AAPL").await;
        let (program, tier) = [(&stack.filtered[0], "filtered"), (&stack.firehose, "firehose")][n];
        let closed = format!("{tier}_sessions_closed_total");
        assert_eq!(program.metric_with(&closed, r#"reason="internal""#).await, Some(0.0));
    }
}
