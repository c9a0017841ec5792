//! Several firehoses of which only one may dial: takeover, release, and what a lost NATS means.

use std::time::{Duration, Instant};

use polygon_sim::{Fault, SimConfig};
use tests::{
    http::get,
    lease::{Contenders, Death, stands_by, takeovers, trade},
    nats::NatsServer,
    program::{Launch, Program, Signal},
    stack::{self, CLIENT_KEY, Sim, VENDOR_KEY, is_complete, is_up},
    wait::{SOON, eventually, holds_for},
    ws_client::TestClient,
};

/// Longer than any takeover. For what must not happen.
const A_WHILE: Duration = Duration::from_secs(4);

async fn role(program: &Program) -> String {
    program.health_text("/lease/role").await
}

#[tokio::test]
async fn a_standby_takes_over_from_a_killed_holder_and_from_one_that_stands_still() {
    let nats = NatsServer::start().await;
    let mut contenders = Contenders::on_nats(2, &nats, Vec::new()).await;
    let killed = takeovers(&mut contenders, Death::Kill, 2).await;
    assert_eq!((killed.further_dials, killed.overlaps), (0, 0), "{killed}");
    // Two seconds of waiting, and the login. A busy machine is not a fault.
    assert!(killed.quantile(0.0) < Duration::from_secs(3), "{killed}");
    let stopped = takeovers(&mut contenders, Death::Stop, 2).await;
    assert_eq!(stopped.further_dials, 0, "{stopped}");
    let dialled = contenders.dialled();
    holds_for(A_WHILE, "nobody dials once the stopped one goes on", async || {
        contenders.dialled() == dialled
    })
    .await;
    contenders.complete().await;
}

#[tokio::test]
async fn a_stopped_holder_that_goes_on_neither_dials_nor_publishes() {
    let nats = NatsServer::start().await;
    let contenders = Contenders::on_nats(2, &nats, Vec::new()).await;
    let holder = contenders.complete().await;
    let (old, new) = (&contenders.programs[holder], &contenders.programs[1 - holder]);
    let epoch = old.health().await["lease"]["epoch"].as_u64().unwrap();
    old.signal(Signal::SIGSTOP);
    contenders.holder_among(&[1 - holder]).await;
    let dialled = contenders.dialled();
    old.signal(Signal::SIGCONT);
    stands_by(old).await;
    assert_eq!(old.log_count("Authenticated successfully"), 1);
    assert_eq!(old.log_count("this program has lost the lease: its connection is closed"), 1);
    holds_for(A_WHILE, "it does not dial", async || contenders.dialled() == dialled).await;
    let health = new.health().await;
    assert!(health["lease"]["epoch"].as_u64().unwrap() > epoch, "{health}");
    assert_eq!(health["lease"]["term"], 2, "{health}");
    let stood_by = old.health().await;
    assert_eq!((&stood_by["status"], &stood_by["problems"]), (&"standby".into(), &[(); 0].into()));
    assert_eq!(stood_by["lease"]["holder"], health["lease"]["name"]);
}

/// Reads until an object holds this text, and returns it with all before it.
async fn until(client: &mut TestClient, text: &str) -> Vec<String> {
    let mut objects = Vec::new();
    loop {
        objects.push(client.next_object().await);
        if objects.last().is_some_and(|last| last.contains(text)) {
            return objects;
        }
    }
}

#[tokio::test]
async fn a_firehose_that_holds_the_lease_again_begins_an_epoch_that_its_clients_cross() {
    let nats = NatsServer::start().await;
    let mut contenders = Contenders::on_nats(2, &nats, Vec::new()).await;
    let first = contenders.complete().await;
    let proxy = stack::filtered(contenders.programs[first].addr()).start().await;
    is_complete(&proxy).await;
    let mut client = TestClient::login(proxy.addr(), CLIENT_KEY).await;
    client.subscribe("T.AAPL").await;
    contenders.sim.handle.publish(&[trade(1)]);
    client.expect(&format!("[{}]", trade(1))).await;
    contenders.programs[first].signal(Signal::SIGSTOP);
    contenders.holder_among(&[1 - first]).await;
    contenders.programs[first].signal(Signal::SIGCONT);
    stands_by(&contenders.programs[first]).await;
    until(&mut client, "upstream_down").await;
    contenders.programs[1 - first].signal(Signal::SIGKILL);
    contenders.programs[1 - first].wait_exit(SOON).await;
    contenders.holder_among(&[first]).await;
    is_complete(&proxy).await;
    contenders.sim.handle.publish(&[trade(2)]);
    let seen = until(&mut client, &trade(2)).await;
    let at = |text: &str| seen.iter().position(|object| object.contains(text));
    let gap = at("other_epoch").expect("told of the new epoch");
    assert!(at("upstream_up").is_some_and(|up| gap < up), "{seen:#?}");
    assert!(!seen.iter().any(|object| object.contains(&trade(1))), "{seen:#?}");
    let epoch = contenders.programs[first].health().await["lease"]["epoch"].to_string();
    let position = contenders.programs[first].health_text("/history/to").await;
    assert!(position.starts_with(&format!("{epoch}-1")), "{position}");
    assert_eq!(proxy.health_text("/history/to").await, position);
    assert_eq!(proxy.metric("filtered_upstream_connects_total").await, Some(1.0));
}

#[tokio::test]
async fn a_planned_stop_releases_the_lease_at_once() {
    let nats = NatsServer::start().await;
    let mut contenders = Contenders::on_nats(2, &nats, Vec::new()).await;
    let holder = contenders.complete().await;
    let began = Instant::now();
    contenders.programs.remove(holder).stop().await;
    let stopped = Instant::now();
    contenders.holder_among(&[0]).await;
    // The one waits 2 s for a renewal if it is not told.
    assert!(stopped.elapsed() < Duration::from_millis(1_900), "{:?}", began.elapsed());
    assert_eq!(contenders.dialled(), 2);
    let stats = contenders.sim.handle.stats();
    assert_eq!((stats.evictions, stats.closes_received), (0, 1), "closed before it was released");
}

#[tokio::test]
async fn of_two_standbys_one_takes_over() {
    let nats = NatsServer::start().await;
    let mut contenders = Contenders::on_nats(3, &nats, Vec::new()).await;
    let report = takeovers(&mut contenders, Death::Kill, 2).await;
    assert_eq!((report.further_dials, report.overlaps), (0, 0), "{report}");
}

#[tokio::test]
async fn a_nats_that_is_back_soon_costs_no_connection() {
    let mut nats = NatsServer::start().await;
    let contenders = Contenders::on_nats(2, &nats, Vec::new()).await;
    let holder = contenders.complete().await;
    nats.kill();
    let problem = "the lease cannot be renewed";
    eventually(SOON, problem, async || {
        contenders.programs[holder].health().await["problems"].to_string().contains(problem)
    })
    .await;
    let standby = &contenders.programs[1 - holder];
    eventually(SOON, "the standby says that it is none", async || {
        let health = standby.health().await;
        health["lease"]["ready"] == false
            && health["status"] == "down"
            && health["problems"].to_string().contains("this standby cannot take over")
    })
    .await;
    holds_for(Duration::from_secs(3), "the connection is kept", async || {
        contenders.sim.handle.stats().connections_now == 1
    })
    .await;
    nats.restart().await;
    assert_eq!(contenders.complete().await, holder);
    assert_eq!(contenders.dialled(), 1);
    assert_eq!(contenders.programs[holder].health().await["lease"]["term"], 1);
}

#[tokio::test]
async fn a_nats_that_stays_away_costs_the_connection_until_it_is_back() {
    let mut nats = NatsServer::start().await;
    let keep = vec![("LEASE_KEEP", "3s".to_owned())];
    let contenders = Contenders::on_nats(2, &nats, keep).await;
    contenders.complete().await;
    nats.kill();
    let killed = Instant::now();
    eventually(SOON, "the connection is dropped", async || {
        contenders.sim.handle.stats().connections_now == 0
    })
    .await;
    assert!(killed.elapsed() > Duration::from_secs(2), "not before its time");
    holds_for(A_WHILE, "nobody dials", async || contenders.dialled() == 1).await;
    nats.restart().await;
    contenders.complete().await;
    assert_eq!(contenders.dialled(), 2);
}

#[tokio::test]
async fn a_locked_file_passes_with_its_process() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lease");
    let settings = vec![("LEASE", format!("file:{}", path.display()))];
    let mut contenders = Contenders::start(2, settings).await;
    let report = takeovers(&mut contenders, Death::Kill, 3).await;
    assert_eq!((report.further_dials, report.overlaps), (0, 0), "{report}");
    assert!(report.quantile(0.0) < Duration::from_secs(1), "{report}");
    assert!(dir.path().join("lease.stocks").exists(), "a file for each market");
    let holder = contenders.complete().await;
    contenders.programs.remove(holder).stop().await;
    let next = contenders.holder_among(&[0]).await;
    assert_eq!(contenders.programs[next].health().await["lease"]["term"], 5);
}

#[tokio::test]
async fn a_firehose_that_stands_by_says_so_to_a_load_balancer() {
    let dir = tempfile::tempdir().unwrap();
    let settings = vec![("LEASE", format!("file:{}", dir.path().join("lease").display()))];
    let contenders = Contenders::start(2, settings).await;
    let holder = contenders.complete().await;
    for (n, program) in contenders.programs.iter().enumerate() {
        let status = if n == holder { 200 } else { 503 };
        for path in ["/health", "/readyz"] {
            assert_eq!(get(program.plain(), path).await.status, status, "{path}");
        }
        assert_eq!(get(program.plain(), "/livez").await.status, 200);
        let held = program.metric("firehose_lease_held").await;
        assert_eq!(held, Some(if n == holder { 1.0 } else { 0.0 }));
        let ready = program.metric("firehose_lease_ready").await;
        assert_eq!(ready, Some(if n == holder { 0.0 } else { 1.0 }));
    }
}

#[tokio::test]
async fn markets_have_leases_of_their_own() {
    let nats = NatsServer::start().await;
    let sim = Sim::with(SimConfig { market: "stocks,crypto".to_owned(), ..SimConfig::default() });
    let sim = sim.await;
    let launch = |markets: &str| {
        let several = markets.contains(',');
        let url = if several { sim.url("") } else { sim.url(markets) };
        stack::firehose(&url)
            .env("MARKETS", markets)
            .env("NATS_URL", nats.url())
            .env("LEASE", "nats")
    };
    let crypto = launch("crypto").start().await;
    is_up(&crypto).await;
    let both = launch("stocks,crypto").start().await;
    let lease = async |market: &str| {
        let health = both.health().await;
        health["markets"][market]["lease"]["role"].as_str().unwrap_or_default().to_owned()
    };
    eventually(SOON, "it holds the one and not the other", async || {
        (lease("stocks").await, lease("crypto").await) == ("holder".into(), "standby".into())
    })
    .await;
    crypto.stop().await;
    eventually(SOON, "it holds both", async || lease("crypto").await == "holder").await;
}

#[tokio::test]
async fn a_holder_whose_key_is_refused_keeps_the_lease_and_says_why() {
    let nats = NatsServer::start().await;
    let sim = Sim::start().await;
    let launch = |key: &str| {
        stack::firehose(&sim.url("stocks"))
            .env("POLYGON_API_KEY", key)
            .env("NATS_URL", nats.url())
            .env("LEASE", "nats")
    };
    let wrong = launch("wrong-key").start().await;
    eventually(SOON, "the key is refused", async || {
        wrong.health_text("/upstream/state").await == "refused"
    })
    .await;
    assert_eq!(role(&wrong).await, "holder");
    let right = launch(VENDOR_KEY).start().await;
    stands_by(&right).await;
    holds_for(A_WHILE, "the lease does not pass", async || {
        role(&right).await == "standby" && sim.handle.stats().auths == 0
    })
    .await;
    wrong.stop().await;
    is_up(&right).await;
}

#[tokio::test]
async fn a_lost_vendor_is_dialled_again_by_the_holder() {
    let nats = NatsServer::start().await;
    let contenders = Contenders::on_nats(2, &nats, Vec::new()).await;
    let holder = contenders.complete().await;
    contenders.sim.handle.inject(Fault::Abort);
    eventually(SOON, "dialled again", async || contenders.dialled() == 2).await;
    assert_eq!(contenders.complete().await, holder);
}

#[tokio::test]
async fn wrong_settings_of_the_lease_are_named_in_one_line() {
    let launch = || stack::firehose("ws://127.0.0.1:9/stocks");
    let refused = async |launch: Launch| {
        let finished = launch.run(SOON).await;
        assert_eq!(finished.code, Some(2), "{finished:?}");
        assert_eq!(finished.stderr.lines().count(), 1, "{finished:?}");
        finished.stderr
    };
    let nats = || launch().env("NATS_URL", "nats://127.0.0.1:9").env("LEASE", "nats");
    for (launch, starts, names) in [
        (launch().env("LEASE", "redis"), "LEASE: invalid value \"redis\"", "file:PATH"),
        (launch().env("LEASE", "file:"), "LEASE: invalid value", "file:PATH"),
        (launch().env("LEASE", "nats"), "NATS_URL: not set", "LEASE is nats"),
        (nats().env("LEASE_TAKEOVER", "1s"), "LEASE_TAKEOVER: invalid value", "at least 2s"),
        (nats().env("LEASE_KEEP", "1s"), "LEASE_KEEP: invalid value", "at least 1s 200ms"),
        (launch().env("LEASE", "file:/no/such/dir/x"), "LEASE: invalid value", "written"),
    ] {
        let line = refused(launch).await;
        assert!(line.starts_with(starts) && line.contains(names), "{line}");
    }
}
