//! Who holds a lease that is kept in a store with compare-and-set. Pure: the caller passes in the
//! time and chance, and does what a [`Step`] says.
//!
//! No clock is compared with another. A holder counts its right to dial from before it sent a
//! renewal. Another program counts the time that it waits from after it saw that renewal, and waits
//! for longer than the right lasts. So the right is over before anybody else can have it, however
//! long a message or a program is held up, and while the rates of the clocks differ by less than
//! the two times do.

use std::time::Duration;

use super::value::Value;

/// The times of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// How often a holder renews, and others look.
    pub renewal: Duration,
    /// How long a renewal gives the right to dial.
    pub dial: Duration,
    /// How long a holder may keep its connection after a renewal.
    pub keep: Duration,
    /// How long others wait for a renewal before one of them takes the lease.
    pub takeover: Duration,
    /// Up to so much is added to that by chance, so that one comes first.
    pub spread: Duration,
}

impl Timing {
    /// The least time of [`takeover`](Self::takeover).
    pub const LEAST_TAKEOVER: Duration = Duration::from_secs(2);

    /// The times for these two settings.
    pub const fn new(takeover: Duration, keep: Duration) -> Self {
        Self {
            renewal: Duration::from_millis(500),
            dial: Duration::from_millis(1_200),
            keep,
            takeover,
            spread: Duration::from_millis(200),
        }
    }
}

/// What the store holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Changes with each write, and grows. Zero if nothing was ever written.
    pub revision: u64,
    /// The value. `None` if there is none, or none that can be read.
    pub value: Option<Value>,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing before this time.
    Wait(Duration),
    /// Read the entry from the store's leader, and pass the result to [`Lease::on_read`].
    Read,
    /// Write this if the entry still has the revision. Pass the result to [`Lease::on_written`].
    Write {
        /// The value.
        value: Value,
        /// The revision that it replaces.
        revision: u64,
    },
}

/// The result of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// Stored as this revision.
    Stored(u64),
    /// Refused: the entry has another revision.
    Refused,
    /// No answer. It may be stored, now or later.
    Unknown,
}

/// One program's side of a lease.
#[derive(Debug)]
pub struct Lease {
    name: String,
    address: String,
    timing: Timing,
    state: State,
    /// The most that was seen.
    term: u64,
    epoch: u64,
    /// When the next step is due.
    due: Duration,
    /// The value that is being written.
    writing: Option<Value>,
}

#[derive(Debug)]
enum State {
    Standby {
        /// The entry last seen, since when it is unchanged, and when it was last read.
        seen: Option<(Entry, Duration, Duration)>,
        /// What chance adds to the waiting time.
        spread: Duration,
    },
    Holder {
        held: Value,
        revision: u64,
        dial_until: Duration,
        keep_until: Duration,
        /// A write was refused, so the entry has to be read.
        in_doubt: bool,
    },
}

/// How long after a failure the next attempt comes.
const RETRY: Duration = Duration::from_millis(100);

impl Lease {
    /// The side of a program that holds nothing. `name` is that of this run of it, without blanks.
    pub fn new(name: String, address: String, timing: Timing) -> Self {
        let state = State::Standby { seen: None, spread: Duration::ZERO };
        let (due, writing) = (Duration::ZERO, None);
        Self { name, address, timing, state, term: 0, epoch: 0, due, writing }
    }

    /// Whether it holds the lease, as far as it knows. Whether it may dial is another question.
    pub fn held(&self) -> Option<&Value> {
        match &self.state {
            State::Holder { held, .. } => Some(held),
            State::Standby { .. } => None,
        }
    }

    /// Until when it may dial, and until when it may keep its connection. Zero if it may not.
    pub fn rights(&self) -> (Duration, Duration) {
        match self.state {
            State::Holder { dial_until, keep_until, .. } => (dial_until, keep_until),
            State::Standby { .. } => (Duration::ZERO, Duration::ZERO),
        }
    }

    /// The value last seen, if another program's or nobody's.
    pub fn others(&self) -> Option<&Value> {
        match &self.state {
            State::Standby { seen: Some((entry, ..)), .. } => entry.value.as_ref(),
            State::Standby { seen: None, .. } | State::Holder { .. } => None,
        }
    }

    /// Whether it would take the lease if its holder were gone: the last read succeeded.
    pub fn is_ready(&self) -> bool {
        matches!(self.state, State::Standby { seen: Some(_), .. })
    }

    /// The next step. `epoch` is the epoch that it would publish in if it took the lease now; a
    /// later one is used where the lease knows of one as late.
    pub fn step(&mut self, now: Duration, epoch: u64) -> Step {
        if now < self.due {
            return Step::Wait(self.due);
        }
        match &self.state {
            State::Holder { in_doubt: true, .. } => Step::Read,
            State::Holder { held, revision, .. } => {
                let value = Value { n: held.n + 1, ..held.clone() };
                self.writing = Some(value.clone());
                Step::Write { value, revision: *revision }
            }
            State::Standby { seen: Some((entry, since, read)), spread }
                if *read == now && self.may_take(entry, *since, *spread, now) =>
            {
                let value = Value {
                    holder: Some(self.name.clone()),
                    term: self.term + 1,
                    n: 1,
                    epoch: epoch.max(self.epoch + 1),
                    address: self.address.clone(),
                };
                self.writing = Some(value.clone());
                Step::Write { value, revision: entry.revision }
            }
            State::Standby { .. } => Step::Read,
        }
    }

    fn may_take(&self, entry: &Entry, since: Duration, spread: Duration, now: Duration) -> bool {
        let free = entry.value.as_ref().is_some_and(|value| value.holder.is_none());
        free || now >= since + self.timing.takeover + spread
    }

    /// An epoch is known from elsewhere: a later one has to follow.
    pub fn on_stream_epoch(&mut self, epoch: u64) {
        self.epoch = self.epoch.max(epoch);
    }

    /// Takes the result of a read that ended now. `None` means that it failed. `chance` is evenly
    /// spread over `0.0..1.0`.
    pub fn on_read(&mut self, now: Duration, entry: Option<Entry>, chance: f64) {
        if let Some(value) = entry.as_ref().and_then(|entry| entry.value.as_ref()) {
            self.term = self.term.max(value.term);
            self.epoch = self.epoch.max(value.epoch);
        }
        let Timing { renewal, takeover, spread: most, .. } = self.timing;
        match (&mut self.state, entry) {
            (State::Holder { held, revision, in_doubt, .. }, Some(entry)) => {
                let own = entry.value.as_ref().filter(|value| {
                    value.holder.as_ref() == Some(&self.name) && value.term == held.term
                });
                match own {
                    // A write of ours was stored, and its answer was lost. It gives no right.
                    Some(own) => {
                        (held.n, *revision, *in_doubt) = (own.n, entry.revision, false);
                        self.due = now;
                    }
                    None => self.step_down(Some((entry, now, now)), now, chance),
                }
            }
            (State::Holder { .. }, None) => self.due = now + RETRY,
            // Whoever could not look does not know whether others could renew.
            (State::Standby { seen, .. }, None) => {
                *seen = None;
                self.due = now + RETRY;
            }
            (State::Standby { seen, spread }, Some(entry)) => {
                let known = seen
                    .as_ref()
                    .filter(|(known, _, read)| *known == entry && now <= *read + renewal * 2);
                let since = match known {
                    Some((_, since, _)) => *since,
                    None => {
                        *spread = most.mul_f64(chance);
                        now
                    }
                };
                let over = since + takeover + *spread;
                *seen = Some((entry, since, now));
                let State::Standby { seen: Some((entry, ..)), spread } = &self.state else {
                    return;
                };
                self.due = match self.may_take(entry, since, *spread, now) {
                    true => now,
                    false => (now + renewal).min(over),
                };
            }
        }
    }

    /// Takes the result of the last write, which began at `began` and ended now. `chance` as for
    /// [`on_read`](Self::on_read).
    pub fn on_written(&mut self, began: Duration, now: Duration, written: Written, chance: f64) {
        let Some(value) = self.writing.take() else { return };
        let Timing { renewal, dial, keep, .. } = self.timing;
        match (&mut self.state, written) {
            (_, Written::Stored(revision)) => {
                (self.term, self.epoch) = (self.term.max(value.term), self.epoch.max(value.epoch));
                let (dial_until, keep_until) = (began + dial, began + keep);
                let in_doubt = false;
                self.state =
                    State::Holder { held: value, revision, dial_until, keep_until, in_doubt };
                self.due = began + renewal;
            }
            (State::Holder { in_doubt, .. }, Written::Refused) => {
                *in_doubt = true;
                self.due = now;
            }
            (State::Holder { .. }, Written::Unknown) => self.due = now.max(began + RETRY),
            // Another one was first, or it is not known whether we were. Our own value, if that is
            // what stands there, is like that of a holder who does not renew.
            (State::Standby { .. }, Written::Refused | Written::Unknown) => {
                self.step_down(None, now, chance);
            }
        }
    }

    /// The write that releases the lease, if it is held. To be done once the connection is closed;
    /// there is no step after it.
    pub fn release(&mut self) -> Option<(Value, u64)> {
        let State::Holder { held, revision, .. } = &self.state else { return None };
        let released = (held.released(), *revision);
        self.state = State::Standby { seen: None, spread: Duration::ZERO };
        Some(released)
    }

    fn step_down(&mut self, seen: Option<(Entry, Duration, Duration)>, now: Duration, chance: f64) {
        // The waiting time of what was seen now begins now.
        self.state = State::Standby { seen, spread: self.timing.spread.mul_f64(chance) };
        self.due = now + RETRY;
    }
}
