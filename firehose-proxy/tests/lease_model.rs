//! The protocol of the lease against a model of the world: a store, programs that are held up at
//! any moment, clocks that differ, messages that are late or lost.

use std::time::Duration;

use fastrand::Rng;
use firehose_proxy::lease::{
    protocol::{Entry, Lease, Step, Timing, Written},
    value::Value,
};

const TIMING: Timing = Timing::new(Duration::from_secs(2), Duration::from_secs(10));

/// After this time without an answer, a program gives up a request.
const TIMEOUT: u64 = 500_000;

/// A request to the store, on its way there or back. Times are those of the world, in microseconds.
enum Flight {
    /// Arrives at the store then; its answer arrives after so long, or never.
    There(u64, Option<u64>, Request),
    /// The answer arrives then.
    Back(u64, Answer),
}

enum Request {
    Read,
    Write(Value, u64),
}

enum Answer {
    Read(Entry),
    Written(Written),
}

struct Program {
    lease: Lease,
    /// Its clock: a beginning and a rate.
    offset: u64,
    rate: f64,
    /// Held up until then.
    stopped_until: u64,
    /// The request in flight: when it began by its own clock, and when it is given up.
    began: Duration,
    gives_up: Option<u64>,
    is_write: bool,
    flights: Vec<Flight>,
}

impl Program {
    fn new(index: usize, rng: &mut Rng) -> Self {
        Self {
            lease: Lease::new(format!("p{index}"), String::new(), TIMING),
            offset: rng.u64(0..1_000_000_000),
            // Clocks run wrong by less than the share of the right in the waiting time.
            rate: 1.0 + (rng.f64() - 0.5) * 0.2,
            stopped_until: 0,
            began: Duration::ZERO,
            gives_up: None,
            is_write: false,
            flights: Vec::new(),
        }
    }

    fn clock(&self, world: u64) -> Duration {
        Duration::from_micros(self.offset + (world as f64 * self.rate) as u64)
    }

    fn may_dial(&self, world: u64) -> bool {
        self.clock(world) < self.lease.rights().0
    }

    fn ends(&mut self, world: u64, answer: Option<Answer>, rng: &mut Rng) {
        self.gives_up = None;
        let (now, chance) = (self.clock(world), rng.f64());
        match (answer, self.is_write) {
            (Some(Answer::Read(entry)), false) => self.lease.on_read(now, Some(entry), chance),
            (Some(Answer::Written(written)), true) => {
                self.lease.on_written(self.began, now, written, chance);
            }
            (None, false) => self.lease.on_read(now, None, chance),
            (None, true) => self.lease.on_written(self.began, now, Written::Unknown, chance),
            (Some(_), _) => unreachable!("an answer of another request"),
        }
    }
}

struct World {
    seed: u64,
    rng: Rng,
    now: u64,
    entry: Entry,
    programs: Vec<Program>,
    /// How bad the world is: chances of each trouble, in a thousand.
    loss: u32,
    stops: u32,
    /// Whether messages take their time, some of them long.
    slow: bool,
    /// The store answers nobody until then.
    away_until: u64,
    takeovers: u64,
    last_term: u64,
    last_epoch: u64,
}

impl World {
    fn new(seed: u64, programs: usize) -> Self {
        let mut rng = Rng::with_seed(seed);
        let (loss, stops) = (rng.u32(0..200), rng.u32(0..20));
        let programs = (0..programs).map(|index| Program::new(index, &mut rng)).collect();
        let entry = Entry { revision: 0, value: None };
        Self {
            seed,
            rng,
            now: 1_000_000,
            entry,
            programs,
            loss,
            stops,
            slow: true,
            away_until: 0,
            takeovers: 0,
            last_term: 0,
            last_epoch: 0,
        }
    }

    fn chance(&mut self, in_thousand: u32) -> bool {
        self.rng.u32(0..1_000) < in_thousand
    }

    fn delay(&mut self) -> u64 {
        match self.rng.u32(0..100) {
            _ if !self.slow => 1_000,
            0..90 => self.rng.u64(100..5_000),
            90..98 => self.rng.u64(5_000..400_000),
            _ => self.rng.u64(400_000..6_000_000),
        }
    }

    /// What the store does with a request.
    fn apply(&mut self, request: Request) -> Answer {
        match request {
            Request::Read => Answer::Read(self.entry.clone()),
            Request::Write(_, revision) if revision != self.entry.revision => {
                Answer::Written(Written::Refused)
            }
            Request::Write(value, revision) => {
                let passes = self.last_term != value.term;
                if passes {
                    assert!(value.term > self.last_term, "terms grow");
                    assert!(value.epoch > self.last_epoch, "epochs grow");
                    (self.last_term, self.last_epoch) = (value.term, value.epoch);
                    self.takeovers += 1;
                }
                self.entry = Entry { revision: revision + 1, value: Some(value) };
                Answer::Written(Written::Stored(revision + 1))
            }
        }
    }

    /// A tenth of a millisecond or several pass.
    fn pass(&mut self) {
        self.now += self.rng.u64(100..2_000);
        if self.chance(1) && self.chance(self.stops) {
            self.away_until = self.now + self.rng.u64(100_000..8_000_000);
        }
        for index in 0..self.programs.len() {
            self.deliver(index);
            if self.chance(self.stops) && self.chance(20) {
                let stop = self.rng.u64(10_000..7_000_000);
                self.programs[index].stopped_until = self.now + stop;
            }
            if self.programs[index].stopped_until <= self.now {
                self.run(index);
            }
        }
        let dial = self.programs.iter().filter(|program| program.may_dial(self.now)).count();
        assert!(dial <= 1, "{dial} programs may dial at {}, seed {}", self.now, self.seed);
    }

    /// The network goes on while a program is stopped.
    fn deliver(&mut self, index: usize) {
        let flights = std::mem::take(&mut self.programs[index].flights);
        for flight in flights {
            let next = match flight {
                Flight::There(at, back, request) if at <= self.now => {
                    if self.now < self.away_until {
                        // A client keeps what it could not send, and sends it later.
                        Some(Flight::There(self.away_until + 1, back, request))
                    } else {
                        let answer = self.apply(request);
                        back.map(|back| Flight::Back(self.now + back, answer))
                    }
                }
                flight => Some(flight),
            };
            self.programs[index].flights.extend(next);
        }
    }

    fn run(&mut self, index: usize) {
        let now = self.now;
        let program = &mut self.programs[index];
        // The one answer that it waits for; those of requests given up are nobody's.
        let ready = program
            .flights
            .iter()
            .position(|flight| matches!(flight, Flight::Back(at, _) if *at <= now));
        if let Some(ready) = ready {
            let Flight::Back(_, answer) = program.flights.remove(ready) else { unreachable!() };
            if program.gives_up.is_some() {
                program.ends(now, Some(answer), &mut self.rng);
            }
        }
        if program.gives_up.is_some_and(|at| at <= now) {
            // Its answer, if it comes, finds nobody.
            program.flights = std::mem::take(&mut program.flights)
                .into_iter()
                .filter_map(|flight| match flight {
                    Flight::There(at, _, request) => Some(Flight::There(at, None, request)),
                    Flight::Back(..) => None,
                })
                .collect();
            program.ends(now, None, &mut self.rng);
        }
        if program.gives_up.is_some() {
            return;
        }
        let clock = program.clock(now);
        let request = match program.lease.step(clock, now) {
            Step::Wait(_) => return,
            Step::Read => Request::Read,
            Step::Write { value, revision } => Request::Write(value, revision),
        };
        (program.began, program.gives_up) = (clock, Some(now + TIMEOUT));
        program.is_write = matches!(request, Request::Write(..));
        if self.chance(self.loss) {
            return;
        }
        let (there, back) = (self.delay(), self.delay());
        let back = (!self.chance(self.loss)).then_some(back);
        self.programs[index].flights.push(Flight::There(now + there, back, request));
    }

    fn calm(&mut self) {
        (self.loss, self.stops, self.slow, self.away_until) = (0, 0, false, 0);
        for program in &mut self.programs {
            program.stopped_until = 0;
            program.flights.clear();
        }
    }

    fn run_for(&mut self, micros: u64) {
        let end = self.now + micros;
        while self.now < end {
            self.pass();
        }
    }
}

#[test]
fn never_two_may_dial_and_one_may_once_the_world_is_calm() {
    let mut takeovers = 0;
    for seed in 0..120 {
        let mut world = World::new(seed, 2 + (seed % 2) as usize);
        world.run_for(60_000_000);
        world.calm();
        world.run_for(8_000_000);
        let dial = world.programs.iter().filter(|program| program.may_dial(world.now)).count();
        assert_eq!(dial, 1, "one holds the lease in a calm world, seed {seed}");
        takeovers += world.takeovers;
    }
    assert!(takeovers > 120, "the lease has passed {takeovers} times");
}

#[test]
fn a_world_with_too_short_a_waiting_time_is_caught() {
    // The model can fail: with a waiting time below the right to dial, two may dial at once.
    let timing = Timing { takeover: Duration::from_millis(700), spread: Duration::ZERO, ..TIMING };
    let caught = (0..50).any(|seed| {
        let mut world = World::new(seed, 2);
        for (index, program) in world.programs.iter_mut().enumerate() {
            program.lease = Lease::new(format!("p{index}"), String::new(), timing);
        }
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.run_for(60_000_000)))
            .is_err()
    });
    assert!(caught);
}

#[test]
fn a_released_lease_is_taken_at_once() {
    let mut rng = Rng::with_seed(1);
    let mut lease = Program::new(0, &mut rng).lease;
    let second = Duration::from_secs(1);
    let value = Value { holder: None, term: 4, n: 9, epoch: 70, address: String::new() };
    assert_eq!(lease.step(second, 50), Step::Read);
    lease.on_read(second, Some(Entry { revision: 12, value: Some(value) }), 0.5);
    let Step::Write { value, revision } = lease.step(second, 50) else { panic!() };
    assert_eq!((value.term, value.epoch, revision), (5, 71, 12));
    lease.on_written(second, second, Written::Stored(13), 0.5);
    assert_eq!(lease.rights(), (second + TIMING.dial, second + TIMING.keep));
    assert_eq!(lease.held().map(|held| held.term), Some(5));
    let (released, revision) = lease.release().unwrap();
    assert_eq!((released.holder, revision), (None, 13));
    assert_eq!(lease.rights().0, Duration::ZERO);
}

#[test]
fn an_empty_store_is_waited_for() {
    let mut lease = Program::new(0, &mut Rng::with_seed(1)).lease;
    let empty = || Some(Entry { revision: 0, value: None });
    let mut now = Duration::from_secs(1);
    let end = now + TIMING.takeover;
    loop {
        match lease.step(now, 9) {
            Step::Read => lease.on_read(now, empty(), 0.0),
            Step::Wait(until) => now = until,
            Step::Write { value, revision } => {
                assert_eq!((value.term, value.epoch, revision), (1, 9, 0));
                break;
            }
        }
    }
    assert_eq!(now, end);
}

#[test]
fn a_failed_look_starts_the_waiting_time_anew() {
    let mut lease = Program::new(0, &mut Rng::with_seed(1)).lease;
    let ms = Duration::from_millis;
    let entry = || Some(Entry { revision: 3, value: "other 1 1 1".parse().ok() });
    for at in [0, 500, 1_000, 1_500] {
        assert_eq!(lease.step(ms(at), 9), Step::Read);
        lease.on_read(ms(at), entry(), 0.0);
    }
    lease.on_read(ms(1_900), None, 0.0);
    assert!(!lease.is_ready());
    lease.on_read(ms(2_000), entry(), 0.0);
    assert_eq!(lease.step(ms(2_400), 9), Step::Wait(ms(2_500)));
    // A program that was stopped does not know whether others could renew meanwhile either.
    lease.on_read(ms(9_000), entry(), 0.0);
    assert_eq!(lease.step(ms(9_400), 9), Step::Wait(ms(9_500)));
}
