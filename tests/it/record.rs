//! Recording and replay: what the firehose wrote is what came, and can be played again.

use std::{collections::BTreeMap, path::Path, process::Output, time::Duration};

use fastrand::Rng;
use polygon_sim::SimConfig;
use tempfile::TempDir;
use tests::{
    disk::{Call, Disk},
    http,
    program::{Launch, Program, Signal},
    stack::{CLIENT_KEY, FIREHOSE_KEY, Sim, VENDOR_KEY, filtered, firehose, is_complete, is_up},
    tools::duckdb,
    wait::{SOON, eventually, within},
    ws_client::TestClient,
};
use tokio::process::Command;

use crate::{
    doc_snippets::{block, document, has_program},
    events::trade,
};

/// The directory of a market and the names of its files, oldest first.
fn files(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut files: Vec<String> = entries.map(|entry| entry.path().display().to_string()).collect();
    files.sort();
    files
}

async fn shell(script: &str, dir: &Path) -> Output {
    let mut command = Command::new("sh");
    command.arg("-c").arg(script).current_dir(dir).kill_on_drop(true);
    within(SOON, script, command.output()).await.expect("run a shell")
}

/// The frames that people's own tools find in a recording, each with its time. The last lines of a
/// file that was cut off are missing.
async fn recorded(dir: &Path) -> Vec<(u64, String)> {
    let output = shell("for file in *.zst; do zstdcat $file; done", dir).await;
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let whole_lines = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
    let frame = |line: &str| {
        let rest = line.strip_prefix("{\"t\":").expect("a time first");
        let (t, rest) = rest.split_once(',').expect("a frame next");
        let frame = match rest.strip_prefix("\"frame\":") {
            Some(frame) => frame.strip_suffix('}').expect("the end of an object").to_owned(),
            None => {
                let text = rest.strip_prefix("\"text\":").expect("a text").strip_suffix('}');
                serde_json::from_str(text.expect("the end of an object")).expect("a string")
            }
        };
        (t.parse().expect("a number"), frame)
    };
    whole_lines.lines().map(frame).collect()
}

fn recorder(sim: &Sim, dir: &Path) -> Launch {
    let launch = firehose(&sim.url("stocks")).env("RECORD_DIR", dir.display());
    launch.env("CLIENT_NOTICES", "off")
}

async fn up(launch: Launch) -> Program {
    let program = launch.start().await;
    is_up(&program).await;
    program
}

async fn recording(sim: &Sim, dir: &Path) -> Program {
    up(recorder(sim, dir)).await
}

/// A trade that does not compress to less than this many bytes.
fn long_trade(rng: &mut Rng, bytes: usize) -> String {
    let noise: String = (0..bytes + bytes / 3).map(|_| rng.alphanumeric()).collect();
    format!(r#"{{"ev":"T","sym":"AAPL","noise":"{noise}"}}"#)
}

/// Sends each of these events in a frame of its own and expects it at the client.
async fn send(sim: &Sim, client: &mut TestClient, events: &[String]) {
    for event in events {
        sim.handle.publish(std::slice::from_ref(event));
        client.expect_objects(std::slice::from_ref(event)).await;
    }
}

/// The events of recorded frames that hold one each.
async fn recorded_events(dir: &Path) -> Vec<String> {
    let frames = recorded(dir).await.into_iter();
    frames.map(|(_, frame)| frame[1..frame.len() - 1].to_owned()).collect()
}

/// The first problem on `/health`. Empty if there is none.
async fn problem(program: &Program) -> String {
    program.health_text("/problems/0").await
}

async fn is_active(program: &Program) -> bool {
    program.metric("firehose_record_active").await == Some(1.0)
}

async fn subscriber(sim: &Sim, program: &Program) -> TestClient {
    let mut client = TestClient::login(program.addr(), FIREHOSE_KEY).await;
    client.subscribe("T.*").await;
    eventually(SOON, "the market sends trades", async || {
        sim.handle.subscriptions().contains("T.*")
    })
    .await;
    client
}

async fn have_tools() -> bool {
    has_program("zstdcat", "--version").await && has_program("jq", "--version").await
}

fn now_ns() -> u64 {
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("a time after 1970");
    u64::try_from(since.as_nanos()).expect("a time before 2554")
}

#[tokio::test]
async fn every_frame_is_recorded_as_it_came_and_other_tools_read_it() {
    if !have_tools().await {
        return;
    }
    let dir = TempDir::new().expect("make a directory");
    let sim = Sim::with(SimConfig { record: true, ..SimConfig::default() }).await;
    let before = now_ns();
    let program = recording(&sim, dir.path()).await;
    let mut client = subscriber(&sim, &program).await;
    let mut events = Vec::new();
    for n in 0..200 {
        events.push(trade("AAPL", n));
        sim.handle.publish(&events[n..]);
    }
    // With a line break, which no line may hold.
    let odd = "[ {\"ev\":\"T\",\n \"sym\":\"AAPL\",\"q\":201} ]";
    sim.handle.publish_raw(odd);
    client.expect_objects(&events).await;
    assert_eq!(client.next_text().await, odd);
    // While it is written, up to the last second.
    let of_market = dir.path().join("stocks");
    eventually(SOON, "all is on the disk", async || recorded(&of_market).await.len() == 201).await;
    program.stop().await;
    let found = recorded(&of_market).await;
    let frames: Vec<String> = found.iter().map(|(_, frame)| frame.clone()).collect();
    assert_eq!(frames, sim.handle.sent());
    let times: Vec<u64> = found.iter().map(|(t, _)| *t).collect();
    assert!(times.is_sorted() && before < times[0] && times[200] < now_ns(), "{times:?}");

    let query = "zstdcat *.zst | jq -r 'select(.frame) | .frame[] | .sym' | sort | uniq -c";
    let output = shell(query, &of_market).await;
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "200 AAPL");
}

#[tokio::test]
async fn the_documented_examples_read_a_recording() {
    if !have_tools().await {
        return;
    }
    let dir = TempDir::new().expect("make a directory");
    let of_market = dir.path().join("stocks");
    let sim = Sim::start().await;
    let program = recording(&sim, dir.path()).await;
    let mut client = subscriber(&sim, &program).await;
    let price = |symbol: &str, p: &str| format!(r#"{{"ev":"T","sym":"{symbol}","p":{p}}}"#);
    let events = [price("AAPL", "231.4"), price("MSFT", "498.25"), price("AAPL", "230.9")];
    send(&sim, &mut client, &events).await;
    // Is not recorded under `frame`.
    let odd = price("AAPL", "\n231.5");
    sim.handle.publish_raw(&format!("[{odd}]"));
    client.expect_objects(&[&odd]).await;
    // The program still writes.
    eventually(SOON, "all is on the disk", async || recorded(&of_market).await.len() == 4).await;

    let document = document("docs/OPERATIONS.md");
    let output = shell(block(&document, "sh", "zstdcat"), dir.path()).await;
    let expected =
        [&events[0], &events[2], &price("AAPL", "231.5")].map(|event| format!("{event}\n"));
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected.concat());

    let script = dir.path().join("query.py");
    std::fs::write(&script, block(&document, "python", "duckdb")).expect("write a script");
    let Some(done) = duckdb(dir.path(), &script).await else { return };
    assert_eq!(
        (done.stdout.as_str(), done.code),
        ("AAPL 3 231.5\nMSFT 1 498.25\n", Some(0)),
        "{done:?}"
    );

    // The file of a program that was killed, with a line that breaks off. `zstdcat` prints a little
    // less than there is.
    let line = line(OPEN, &[price("ZZZZ", "7.5")]);
    write_recording(dir.path(), "2026-11-27T14-30-00Z", &line.repeat(100_000)).await;
    let cut = of_market.join("2026-11-27T14-30-00Z.jsonl.zst");
    let bytes = std::fs::read(&cut).expect("read a file");
    std::fs::write(&cut, &bytes[..bytes.len() / 2]).expect("cut a file");
    let least = recorded(&of_market).await.len() - events.len() - 1;
    let done = duckdb(dir.path(), &script).await.expect("it was there");
    let row: Vec<&str> = done.stdout.lines().nth(2).expect("a third row").split(' ').collect();
    let found: usize = row[1].parse().expect("a number");
    assert_eq!((row[0], row[2]), ("ZZZZ", "7.5"));
    assert!(0 < least && (least..100_000).contains(&found), "{found}, at least {least}");
}

#[tokio::test]
async fn a_killed_program_loses_a_second_at_most_and_its_successor_begins_a_file() {
    if !have_tools().await {
        return;
    }
    let dir = TempDir::new().expect("make a directory");
    let of_market = dir.path().join("stocks");
    let sim = Sim::start().await;
    let mut sent = 0;
    for round in 1..=2 {
        let mut program = recording(&sim, dir.path()).await;
        let mut client = subscriber(&sim, &program).await;
        for _ in 0..50 {
            sent += 1;
            sim.handle.publish(&[trade("AAPL", sent)]);
            client.expect_objects(&[trade("AAPL", sent)]).await;
        }
        eventually(SOON, "all is on the disk", async || recorded(&of_market).await.len() == sent)
            .await;
        program.signal(Signal::SIGKILL);
        program.wait_exit(SOON).await;
        assert_eq!(recorded(&of_market).await.len(), sent);
        assert_eq!(files(&of_market).len(), round);
    }
}

#[tokio::test]
async fn a_disk_that_fails_ends_the_recording_loudly_and_not_the_stream() {
    let dir = TempDir::new().expect("make a directory");
    let sim = Sim::start().await;
    let mut program = recording(&sim, dir.path()).await;
    let mut client = subscriber(&sim, &program).await;
    assert_eq!(program.metric("firehose_record_active").await, Some(1.0));
    std::fs::remove_dir(dir.path().join("stocks")).expect("take the directory away");
    for n in 0..20 {
        sim.handle.publish(&[trade("AAPL", n)]);
        client.expect_objects(&[trade("AAPL", n)]).await;
    }
    program.logged("the recording has stopped; the stream goes on").await;
    sim.handle.publish(&[trade("AAPL", 20)]);
    client.expect_objects(&[trade("AAPL", 20)]).await;
    let health = program.health().await;
    let problem = health["problems"][0].as_str().expect("a problem");
    assert!(problem.starts_with("recording stopped: No such file"), "{problem}");
    assert_eq!(health["status"], "degraded");
    let status = http::get(program.addr(), "/status.json").await.json();
    assert_eq!(status["problems"][0]["action"], "look", "{status}");
    assert!(
        status["problems"][0]["what"].as_str().is_some_and(|what| what.starts_with("Recording"))
    );
    assert_eq!(program.metric("firehose_record_active").await, Some(0.0));
}

#[tokio::test]
async fn a_full_disk_ends_the_recording_with_what_fits_and_not_the_stream() {
    if !have_tools().await {
        return;
    }
    let (dir, mut rng) = (TempDir::new().expect("make a directory"), Rng::with_seed(1));
    let of_market = dir.path().join("stocks");
    let sim = Sim::start().await;
    // No file may have more than 64 blocks of 512 bytes. Beyond them a write fails as on a full
    // disk, once the signal is ignored that would end the program.
    let limited = recorder(&sim, dir.path()).after("trap '' XFSZ && ulimit -f 64");
    let mut program = up(limited).await;
    let mut client = subscriber(&sim, &program).await;
    let events: Vec<String> = (0..200).map(|_| long_trade(&mut rng, 1_000)).collect();
    send(&sim, &mut client, &events[..10]).await;
    eventually(SOON, "ten are on the disk", async || recorded(&of_market).await.len() == 10).await;
    assert!(is_active(&program).await);
    send(&sim, &mut client, &events[10..150]).await;
    program.logged("the recording has stopped; the stream goes on").await;
    send(&sim, &mut client, &events[150..]).await;
    assert!(problem(&program).await.starts_with("recording stopped: File too large"));
    assert!(!is_active(&program).await);
    let found = recorded_events(&of_market).await;
    assert!((10..150).contains(&found.len()), "{} events in 32 KiB", found.len());
    assert_eq!(found, events[..found.len()]);
    let path = &files(&of_market)[0];
    assert_eq!(std::fs::metadata(path).expect("a file").len(), 64 * 512);
    // All has been said.
    program.signal(Signal::SIGTERM);
    assert_eq!(program.wait_exit(SOON).await.code(), Some(0));
    assert_eq!(program.log_count("the recording has stopped; the stream goes on"), 1);
    assert_eq!(program.log_count("the end of the recording is not on the disk"), 0);
}

#[tokio::test]
async fn a_disk_that_hangs_for_a_while_loses_nothing_and_is_reported() {
    if !have_tools().await {
        return;
    }
    let (dir, disk) = (TempDir::new().expect("make a directory"), Disk::new().await);
    let of_market = dir.path().join("stocks");
    let sim = Sim::start().await;
    let mut program = up(disk.under(recorder(&sim, dir.path()))).await;
    let mut client = subscriber(&sim, &program).await;
    disk.hang(Call::Sync);
    let mut events = Vec::new();
    // After 10 s.
    eventually(2 * SOON, "the recording pauses", async || {
        events.push(trade("AAPL", events.len()));
        send(&sim, &mut client, &events[events.len() - 1..]).await;
        !is_active(&program).await
    })
    .await;
    program.logged("the recording waits for the disk; the stream goes on").await;
    assert_eq!(problem(&program).await, "recording waits: the disk has not answered for 10 s");
    disk.answer(Call::Sync);
    program.logged("the recording goes on").await;
    assert_eq!(problem(&program).await, "");
    assert!(is_active(&program).await);
    program.stop().await;
    assert_eq!(recorded_events(&of_market).await, events);
}

#[tokio::test]
async fn a_disk_that_hangs_for_good_holds_a_bounded_part_of_the_stream() {
    let (dir, disk) = (TempDir::new().expect("make a directory"), Disk::new().await);
    let mut rng = Rng::with_seed(1);
    let sim = Sim::start().await;
    let launch = recorder(&sim, dir.path()).env("HISTORY_BYTES", 0);
    let mut program = up(disk.under(launch)).await;
    let mut client = subscriber(&sim, &program).await;
    let event = long_trade(&mut rng, 250_000);
    send(&sim, &mut client, &vec![event.clone(); 20]).await;
    let resident = async || {
        program.metric("process_resident_memory_bytes").await.expect("a number")
            / f64::from(1 << 20)
    };
    let before = resident().await;
    disk.hang(Call::Sync);
    // 300 MB, of which 64 MiB may wait, and as many be with the writer.
    let mut most = before;
    for _ in 0..60 {
        send(&sim, &mut client, &vec![event.clone(); 10]).await;
        most = most.max(resident().await);
    }
    println!(
        "memory: {before:.0} MiB before, {most:.0} MiB at most, {:.0} at last",
        resident().await
    );
    assert!(most < before + 160.0, "{before} MiB grew to {most}");
    program.logged("the recording has stopped; the stream goes on").await;
    let problem = problem(&program).await;
    assert!(
        problem.starts_with("recording stopped: the disk is too slow, 64 MiB wait"),
        "{problem}"
    );
    assert!(!is_active(&program).await);
}

#[tokio::test]
async fn a_stop_that_does_not_wait_for_the_disk_says_so() {
    let (dir, disk) = (TempDir::new().expect("make a directory"), Disk::new().await);
    let sim = Sim::start().await;
    // In less time than the recording would wait.
    for drain_timeout in ["500ms", "10s"] {
        let launch = recorder(&sim, dir.path()).env("DRAIN_TIMEOUT", drain_timeout);
        let mut program = up(disk.under(launch.env("DRAIN_SPREAD", "0s"))).await;
        let mut client = subscriber(&sim, &program).await;
        disk.hang(Call::Sync);
        send(&sim, &mut client, &[trade("AAPL", 1)]).await;
        program.signal(Signal::SIGTERM);
        assert_eq!(program.wait_exit(SOON).await.code(), Some(0));
        assert_eq!(program.log_count("the end of the recording is not on the disk"), 1);
        disk.answer(Call::Sync);
    }
}

#[tokio::test]
async fn frames_are_written_while_the_deletion_of_an_old_file_hangs() {
    if !have_tools().await {
        return;
    }
    let (dir, disk) = (TempDir::new().expect("make a directory"), Disk::new().await);
    let of_market = dir.path().join("stocks");
    let sim = Sim::start().await;
    let launch = recorder(&sim, dir.path()).env("RECORD_KEEP", "1h");
    let mut program = up(disk.under(launch)).await;
    program.logged("recording").await;
    // In time for the first file of the program, after it has cleared the directory.
    let old = of_market.join("2026-01-02T10-00-00Z.jsonl.zst");
    write_recording(dir.path(), "2026-01-02T10-00-00Z", "").await;
    let modified = std::time::SystemTime::now() - Duration::from_secs(7_200);
    let file = std::fs::File::options().write(true).open(&old).expect("open a file");
    file.set_modified(modified).expect("make it older");
    disk.hang(Call::Delete);
    let mut client = subscriber(&sim, &program).await;
    send(&sim, &mut client, &[trade("AAPL", 1)]).await;
    eventually(SOON, "it is on the disk", async || recorded(&of_market).await.len() == 1).await;
    assert!(old.exists());
    disk.answer(Call::Delete);
    eventually(SOON, "the old file is gone", async || !old.exists()).await;
}

#[tokio::test]
async fn a_directory_that_cannot_be_written_stops_the_start() {
    let launch = firehose("ws://127.0.0.1:1").file("taken", "").env("RECORD_DIR", "taken");
    let finished = launch.run(SOON).await;
    assert_eq!(finished.code, Some(2), "{}", finished.stderr);
    assert!(
        finished.stderr.starts_with("RECORD_DIR: invalid value \"taken\": expected a directory")
    );
    for bad in ["", "0", "5,6"] {
        let launch = firehose("ws://127.0.0.1:1").env("RECORD_KEEP", bad);
        let finished = launch.run(SOON).await;
        assert!(finished.stderr.starts_with("RECORD_KEEP"), "{}", finished.stderr);
    }
}

#[tokio::test]
async fn old_files_go_when_a_new_one_begins() {
    let dir = TempDir::new().expect("make a directory");
    let of_market = dir.path().join("stocks");
    std::fs::create_dir(&of_market).expect("make a directory");
    for hour in 10..14 {
        let name = format!("2026-01-02T{hour}-00-00Z.jsonl.zst");
        std::fs::write(of_market.join(name), [0; 100]).expect("write a file");
    }
    let sim = Sim::start().await;
    let launch = firehose(&sim.url("stocks")).env("RECORD_DIR", dir.path().display());
    let program = launch.env("RECORD_KEEP", "250").start().await;
    is_up(&program).await;
    let _client = subscriber(&sim, &program).await;
    sim.handle.publish(&[trade("AAPL", 1)]);
    eventually(SOON, "the oldest are gone", async || files(&of_market).len() == 3).await;
    assert!(files(&of_market)[0].ends_with("T12-00-00Z.jsonl.zst"));
}

/// A simulator that plays a recording, and both tiers behind it.
async fn replay(dir: &Path, settings: &[(&str, &str)]) -> (Program, Program, Program) {
    let mut sim = Launch::new("polygon-sim")
        .env("SIM_PORT", 0)
        .env("SIM_KEY", VENDOR_KEY)
        .env("SIM_REPLAY", dir.display());
    for (name, value) in settings {
        sim = sim.env(name, value);
    }
    let sim = sim.start().await;
    let firehose = firehose(&format!("ws://{}/stocks", sim.addr())).start().await;
    let filtered = filtered(firehose.addr()).start().await;
    (sim, firehose, filtered)
}

/// Writes a recorded file with another program than ours.
async fn write_recording(dir: &Path, name: &str, lines: &str) {
    let of_market = dir.join("stocks");
    std::fs::create_dir_all(&of_market).expect("make a directory");
    std::fs::write(of_market.join("lines"), lines).expect("write lines");
    let output = shell(&format!("zstd -q --rm lines -o {name}.jsonl.zst"), &of_market).await;
    assert!(output.status.success(), "{output:?}");
}

fn line(t: u64, frame: &[String]) -> String {
    format!("{{\"t\":{t},\"frame\":[{}]}}\n", frame.join(","))
}

/// 2026-11-27 09:30:00 in New York.
const OPEN: u64 = 1_795_789_800_000_000_000;
const SECOND: u64 = 1_000_000_000;

#[tokio::test]
async fn a_recording_is_played_again_with_the_same_bytes_and_spacing() {
    if !have_tools().await {
        return;
    }
    let dir = TempDir::new().expect("make a directory");
    // A client of one symbol does not get the other. Two days lie between the files.
    let first = [trade("AAPL", 1), trade("MSFT", 2)];
    let text = serde_json::to_string(&format!("[\n{}\n]", trade("AAPL", 4))).expect("a string");
    let lines = line(OPEN, &first)
        + &line(OPEN + 3 * SECOND, &[trade("AAPL", 3)])
        + &format!("{{\"t\":{},\"text\":{text}}}\n", OPEN + 3 * SECOND);
    write_recording(dir.path(), "2026-11-27T14-30-00Z", &lines).await;
    let later = line(OPEN + 48 * 3_600 * SECOND, &[trade("AAPL", 5)]);
    write_recording(dir.path(), "2026-11-29T14-30-00Z", &later).await;

    let mut took = BTreeMap::new();
    for speed in ["1", "10", "max"] {
        let settings = [("SIM_SPEED", speed), ("SIM_LOOP", "true")];
        let (_sim, _firehose, filtered) = replay(dir.path(), &settings).await;
        is_complete(&filtered).await;
        let mut client = TestClient::login(filtered.addr(), CLIENT_KEY).await;
        client.subscribe("T.AAPL").await;
        // It may have begun before this client came.
        while client.next_but_notices().await != trade("AAPL", 1) {}
        let started = std::time::Instant::now();
        client.expect_event(&trade("AAPL", 3)).await;
        took.insert(speed, started.elapsed());
        client.expect_event(&trade("AAPL", 4)).await;
        client.expect_event(&trade("AAPL", 5)).await;
        // And again.
        client.expect_event(&trade("AAPL", 1)).await;
    }
    // The first event may have been read late.
    assert!(took["1"] > Duration::from_secs(2), "{took:?}");
    assert!(took["10"] > Duration::from_millis(50) && took["10"] < took["1"], "{took:?}");
    assert!(took["max"] < took["1"], "{took:?}");
}

#[tokio::test]
async fn a_part_of_each_day_is_played() {
    if !have_tools().await {
        return;
    }
    let dir = TempDir::new().expect("make a directory");
    let minute = 60 * SECOND;
    let mut lines = String::new();
    for day in 0..2 {
        for n in 0..4 {
            let number = usize::try_from(day * 10 + n).expect("a small number");
            lines += &line(OPEN + (day * 24 * 60 + n) * minute, &[trade("AAPL", number)]);
        }
    }
    write_recording(dir.path(), "2026-11-27T14-30-00Z", &lines).await;
    // It may be over before the client comes, so it is played again and again.
    let settings = [
        ("SIM_FROM", "09:31"),
        ("SIM_UNTIL", "09:32:30"),
        ("SIM_SPEED", "1000"),
        ("SIM_LOOP", "true"),
    ];
    let (_sim, firehose, filtered) = replay(dir.path(), &settings).await;
    is_up(&firehose).await;
    let mut client = TestClient::login(filtered.addr(), CLIENT_KEY).await;
    client.command("subscribe", "T.AAPL").await;
    let mut seen = Vec::new();
    while seen.last() != Some(&trade("AAPL", 12)) {
        let object = client.next_object().await;
        if object.starts_with("{\"ev\":\"T\"") {
            seen.push(object);
        }
    }
    let expected = [1, 2, 11, 12].map(|n| trade("AAPL", n));
    assert!(expected.ends_with(&seen), "{seen:?}");
}

#[tokio::test]
async fn a_recording_of_another_market_is_named() {
    let dir = TempDir::new().expect("make a directory");
    std::fs::create_dir(dir.path().join("stocks")).expect("make a directory");
    let launch = Launch::new("polygon-sim").env("SIM_REPLAY", dir.path().display());
    let finished = launch.env("SIM_PORT", 0).env("SIM_MARKET", "crypto").run(SOON).await;
    assert_eq!(finished.code, Some(1));
    assert!(finished.stderr.contains("has no crypto: it has stocks"), "{}", finished.stderr);
}
