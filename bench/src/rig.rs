//! The setup of a run: the sender, the programs and the receivers; and one stretch of load through
//! them.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use crate::{
    client::{ClientPlan, Return},
    clock::Clock,
    feed::Feed,
    fleet::Fleet,
    floor::{FloorStep, Handing},
    load::{Step, Upstream},
    process::{
        Binaries, Program, Recording, Storage, busy_cores, idle_seconds, own_cpu_seconds, pause,
    },
    secure::Identity,
    verify::{Faults, Verifier},
};

/// How long the proxies may take to subscribe upstream.
const SUBSCRIBE_LIMIT: Duration = Duration::from_secs(10);
/// How long the last events may take to arrive once everything is sent.
const DRAIN_LIMIT: Duration = Duration::from_secs(6);
/// A stretch was not kept up with if sending and arriving took this many times its planned length.
const TOLERANCE: f64 = 1.05;
/// The same for short stretches, where one delay has more weight.
const GRACE: Duration = Duration::from_millis(100);

/// The programs between load and clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// The filtered tier alone. The load program plays its firehose.
    Alone,
    /// The same with TLS on the clients' port.
    Tls,
    /// Both tiers. The load program plays the vendor.
    Both,
    /// The same with a recording at the firehose.
    Recorded,
    /// Both tiers with so many bytes of history each.
    History(u64),
    /// Both tiers, with so many filtered proxies on the firehose. Clients take them in turns.
    Link(usize),
    /// The same with NATS between the tiers.
    Nats(usize, Storage),
    /// Floor: copies bytes from one socket to another.
    Relay,
    /// Floor: sends precomputed bytes in this way.
    Floor(Handing),
}

/// The parts that all scenarios share.
#[derive(Debug, Clone)]
pub struct Bench {
    /// The programs.
    pub binaries: Binaries,
    /// The clock of the run.
    pub clock: Clock,
    /// The certificate of an encrypted port.
    pub identity: Arc<Identity>,
}

/// Load, programs and clients, connected and subscribed.
#[derive(Debug)]
pub struct Rig {
    shape: Shape,
    feed: Arc<Feed>,
    clock: Clock,
    /// Fields are dropped in this order: clients first.
    fleet: Fleet,
    /// The programs, the nearest to the clients first.
    pub programs: Vec<Program>,
    upstream: Option<Upstream>,
    /// How long all clients took to connect and subscribe.
    pub login_seconds: f64,
    /// The resident memory of the first program before the first client came.
    pub resident_before: u64,
}

/// What one program cost.
#[derive(Debug, Clone)]
pub struct Cost {
    /// Its name in the report.
    pub name: &'static str,
    /// Processor time in the stretch, in seconds.
    pub cpu_seconds: f64,
    /// The peak of its resident memory, in bytes.
    pub peak_bytes: u64,
}

/// The result of one stretch of load.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Events sent.
    pub events: u64,
    /// From the first event sent to the last one received.
    pub seconds: f64,
    /// Events received by all clients together.
    pub deliveries: u64,
    /// The median delay from sending to arrival, in milliseconds.
    pub p50_ms: f64,
    /// The delay that 99 of 100 events did not exceed.
    pub p99_ms: f64,
    /// Events that clients missed, got twice, or should not have got.
    pub faults: Faults,
    /// Sessions that the proxy ended.
    pub ended: usize,
    /// Whether load and deliveries kept the rate asked for.
    pub kept_up: bool,
    /// The cost of each program.
    pub costs: Vec<Cost>,
    /// Processor time of the load program itself, in seconds.
    pub own_cpu_seconds: f64,
    /// The number of cores that other programs kept busy meanwhile.
    pub other_cores: f64,
    /// Some of the statuses that the proxy sent to clients.
    pub notices: Vec<String>,
    /// What the firehose has recorded, if it records.
    pub recording: Option<Recording>,
}

impl Outcome {
    /// Events sent per second.
    pub fn rate(&self) -> f64 {
        self.events as f64 / self.seconds
    }

    /// Deliveries per second.
    pub fn delivery_rate(&self) -> f64 {
        self.deliveries as f64 / self.seconds
    }

    /// Whether nothing was lost, repeated or foreign, and no session ended.
    pub fn is_complete(&self) -> bool {
        self.faults.none() && self.ended == 0
    }

    /// Whether it is complete, at the rate asked for.
    pub fn is_sustained(&self) -> bool {
        self.is_complete() && self.kept_up
    }

    /// Processor time of all programs of this name in seconds per million events sent.
    pub fn cpu_per_million(&self, name: &str) -> Option<f64> {
        let mut costs = self.costs.iter().filter(|cost| cost.name == name).peekable();
        costs.peek()?;
        let seconds: f64 = costs.map(|cost| cost.cpu_seconds).sum();
        Some(seconds / self.events as f64 * 1e6)
    }

    /// Processor time of all programs in seconds per million events sent.
    pub fn cpu_per_million_all(&self) -> f64 {
        self.costs.iter().map(|cost| cost.cpu_seconds).sum::<f64>() / self.events as f64 * 1e6
    }

    /// One line for the screen.
    pub fn line(&self) -> String {
        let costs: Vec<String> = self
            .costs
            .iter()
            .map(|cost| {
                let cpu = cost.cpu_seconds / self.events as f64 * 1e6;
                format!("{} {cpu:.3} s/M {:.0} MB", cost.name, cost.peak_bytes as f64 / 1e6)
            })
            .collect();
        let mut line = format!(
            "{:>9.0} events/s in {:>10.0} deliveries/s  p50 {:.2} p99 {:.2} ms  {}  load {:.3} s/M  \
             others {:.2} cores",
            self.rate(),
            self.delivery_rate(),
            self.p50_ms,
            self.p99_ms,
            costs.join(", "),
            self.own_cpu_seconds / self.events as f64 * 1e6,
            self.other_cores,
        );
        if !self.kept_up {
            line += "  NOT KEPT UP";
        }
        if self.recording.as_ref().is_some_and(|recording| recording.stopped) {
            line += "  RECORDING STOPPED";
        }
        if !self.is_complete() {
            line += &format!("  {:?}, {} ended {:?}", self.faults, self.ended, self.notices);
        }
        line
    }
}

/// A client of these channels.
pub fn client(feed: &Feed, channels: String) -> ClientPlan {
    let slots = feed.slots_of(channels.split(','));
    let verifier = Verifier::new(slots.into());
    ClientPlan { channels, verifier, stalled: false, returns: false }
}

impl Rig {
    /// Starts the programs and logs the clients in.
    pub fn start(
        bench: &Bench,
        shape: Shape,
        feed: &Arc<Feed>,
        clients: Vec<ClientPlan>,
    ) -> Result<Self> {
        let (binaries, clock) = (&bench.binaries, bench.clock);
        let mut programs = Vec::new();
        let upstream = match shape {
            Shape::Floor(_) => None,
            _ => Some(Upstream::start(feed, clock)?),
        };
        match (&upstream, shape) {
            (Some(upstream), Shape::Alone) => {
                programs.push(binaries.filtered(&ws(upstream.address()), None, None)?);
            }
            (Some(upstream), Shape::Tls) => {
                let identity = Some(&*bench.identity);
                programs.push(binaries.filtered(&ws(upstream.address()), None, identity)?);
            }
            (Some(upstream), Shape::Both | Shape::Recorded | Shape::History(_)) => {
                let records = shape == Shape::Recorded;
                let history = match shape {
                    Shape::History(bytes) => Some(bytes),
                    _ => None,
                };
                let firehose = binaries.firehose(upstream.address(), history, records, None)?;
                programs.push(binaries.filtered(&ws(firehose.address), history, None)?);
                programs.push(firehose);
            }
            (Some(upstream), Shape::Link(proxies)) => {
                let firehose = binaries.firehose(upstream.address(), None, false, None)?;
                let url = ws(firehose.address);
                for _ in 0..proxies {
                    programs.push(binaries.filtered(&url, None, None)?);
                }
                programs.push(firehose);
            }
            (Some(upstream), Shape::Nats(proxies, storage)) => {
                let nats = binaries.nats()?;
                let there = Some((nats.address, storage));
                let firehose = binaries.firehose(upstream.address(), None, false, there)?;
                let url = format!("nats://{}", nats.address);
                for _ in 0..proxies {
                    programs.push(binaries.filtered(&url, None, None)?);
                }
                programs.extend([firehose, nats]);
            }
            (Some(upstream), _) => {
                let args = ["relay".to_owned(), upstream.address().to_string()];
                programs.push(binaries.floor("relay", &args)?);
            }
            (None, _) => {
                let events = feed.frame_events().to_string();
                let epoch = clock.epoch_ns().to_string();
                let args = ["fanout".to_owned(), clients.len().to_string(), events, epoch];
                programs.push(binaries.floor("floor", &args)?);
            }
        }
        let entrances = match shape {
            Shape::Link(proxies) | Shape::Nats(proxies, _) => proxies,
            _ => 1,
        };
        wait_for_upstream(upstream.as_ref(), shape, &programs)?;
        wait_for_links(shape, &programs)?;
        let resident_before = programs[0].resident_bytes()?;
        let before = Instant::now();
        let identity = (shape == Shape::Tls).then_some(&*bench.identity);
        let addresses = programs[..entrances].iter().map(|program| program.address).collect();
        let fleet = Fleet::connect(addresses, identity, clients, Arc::clone(feed), clock)?;
        let login_seconds = before.elapsed().as_secs_f64();
        let feed = Arc::clone(feed);
        let rig =
            Self { shape, feed, clock, fleet, programs, upstream, login_seconds, resident_before };
        Ok(rig)
    }

    /// Sends one stretch of load and waits until it has arrived.
    pub fn run(&mut self, step: Step) -> Result<Outcome> {
        self.run_while(step, |_, _| Ok(()))
    }

    /// The same. Between two reads, calls `steer` with the clients and the programs.
    pub fn run_while(
        &mut self,
        step: Step,
        mut steer: impl FnMut(&mut Fleet, &[Program]) -> Result<()>,
    ) -> Result<Outcome> {
        self.fleet.latency.clear();
        let received = self.fleet.received();
        let cpu: Vec<f64> =
            self.programs.iter().map(Program::cpu_seconds).collect::<Result<_>>()?;
        let (own, idle, began) = (own_cpu_seconds()?, idle_seconds()?, Instant::now());
        let playing = match (&self.upstream, self.shape) {
            (Some(upstream), _) => upstream.play(step),
            (None, Shape::Floor(handing)) => {
                self.programs[0].order(&FloorStep { step, handing })?
            }
            (None, _) => unreachable!("only floors have no upstream"),
        };
        while !playing.is_finished() {
            steer(&mut self.fleet, &self.programs)?;
            self.fleet.poll(Duration::from_millis(20))?;
        }
        let sent = playing.join().expect("the sender does not panic")?;
        let expected = self.fleet.expected(sent.through);
        let deadline = Instant::now() + DRAIN_LIMIT;
        while self.fleet.received() < expected
            && self.fleet.ended() == 0
            && Instant::now() < deadline
        {
            self.fleet.poll(Duration::from_millis(20))?;
        }
        let seconds = (self.fleet.last_arrival_ns().max(sent.end_ns) - sent.start_ns) as f64 / 1e9;
        let limit = step.duration.mul_f64(TOLERANCE).max(step.duration + GRACE).as_secs_f64();
        let enough = step
            .rate
            .is_none_or(|rate| sent.events as f64 >= 0.99 * rate * step.duration.as_secs_f64());
        // Before the processor time is read: a recording is a little behind.
        let recordings = self.programs.iter().map(Program::recording);
        let recordings = recordings.collect::<Result<Vec<_>>>()?;
        let mut costs = Vec::new();
        for (program, before) in self.programs.iter().zip(cpu) {
            costs.push(Cost {
                name: program.name,
                cpu_seconds: program.cpu_seconds()? - before,
                peak_bytes: program.peak_bytes()?,
            });
        }
        let own_cpu_seconds = own_cpu_seconds()? - own;
        let ours = own_cpu_seconds + costs.iter().map(|cost: &Cost| cost.cpu_seconds).sum::<f64>();
        let others = busy_cores(began, idle)? - ours / began.elapsed().as_secs_f64();
        self.programs.iter().try_for_each(Program::check_ledger)?;
        Ok(Outcome {
            events: sent.events,
            seconds,
            deliveries: self.fleet.received() - received,
            p50_ms: self.fleet.latency.quantile_ms(0.5),
            p99_ms: self.fleet.latency.quantile_ms(0.99),
            faults: self.fleet.faults(sent.through),
            ended: self.fleet.ended(),
            kept_up: step.rate.is_none() || (enough && seconds <= limit),
            costs,
            own_cpu_seconds,
            other_cores: others.max(0.0),
            notices: self.fleet.notices(),
            recording: recordings.into_iter().flatten().next(),
        })
    }

    /// How the clients that left came back.
    pub fn returns(&self) -> impl Iterator<Item = &Return> {
        self.fleet.returns()
    }

    /// The feed of the load.
    pub fn feed(&self) -> &Arc<Feed> {
        &self.feed
    }

    /// Reads for this long without sending.
    pub fn idle(&mut self, duration: Duration) -> Result<()> {
        let until = self.clock.now_ns() + duration.as_nanos() as u64;
        while self.clock.now_ns() < until {
            self.fleet.poll(Duration::from_millis(20))?;
        }
        Ok(())
    }
}

/// Waits until the proxies are subscribed upstream. The firehose subscribes only after the filtered
/// proxy has.
fn wait_for_upstream(
    upstream: Option<&Upstream>,
    shape: Shape,
    programs: &[Program],
) -> Result<()> {
    let wanted: &[&str] = match shape {
        Shape::Alone | Shape::Tls => &["*"],
        Shape::Both | Shape::Recorded | Shape::History(_) | Shape::Link(_) | Shape::Nats(..) => {
            &["T.*", "Q.*"]
        }
        Shape::Relay | Shape::Floor(_) => return Ok(()),
    };
    let deadline = Instant::now() + SUBSCRIBE_LIMIT;
    while !upstream.is_some_and(|upstream| upstream.has(wanted)) {
        let logs = || programs.iter().map(Program::log).collect::<Vec<_>>().join("\n");
        ensure!(Instant::now() < deadline, "no subscription came upstream: {}", logs());
        pause();
    }
    Ok(())
}

/// Waits until each of several filtered proxies gets everything.
fn wait_for_links(shape: Shape, programs: &[Program]) -> Result<()> {
    let (Shape::Link(proxies) | Shape::Nats(proxies, _)) = shape else { return Ok(()) };
    let deadline = Instant::now() + SUBSCRIBE_LIMIT;
    for proxy in &programs[..proxies] {
        while !proxy.is_linked()? {
            ensure!(Instant::now() < deadline, "a filtered proxy gets nothing: {}", proxy.log());
            pause();
        }
    }
    Ok(())
}

/// The URL of this address for WebSockets.
fn ws(address: SocketAddr) -> String {
    format!("ws://{address}")
}
