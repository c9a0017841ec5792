//! The names of a market's sessions: which session holds each, and what its client has confirmed.
//! Pure.
//!
//! A name belongs to the key that its client presented. What was confirmed under a name is
//! remembered for a while after its session has ended, for whatever reason it ended.
//!
//! Names may be shared with other proxies. Then they note what the others cannot read yet, and
//! learn what another proxy has saved or taken.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use proxy_common::protocol::Position;

use crate::index::SessionId;

/// How many names are remembered.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// Of all keys. It bounds the memory: ten thousand names take about 3 MB, because a name has at
    /// most 64 bytes.
    all: usize,
    /// Of one key. Without it, a client that makes up names could take the room of other keys.
    of_key: usize,
}

const LIMITS: Limits = Limits { all: 10_000, of_key: 1_000 };

/// The names of a market's sessions. `H` is what ends a session whose name another one takes.
#[derive(Debug)]
pub struct SessionNames<H> {
    /// How long a name is remembered after its session has ended.
    ttl: Duration,
    limits: Limits,
    /// By the label of the key, then by the name.
    keys: HashMap<Arc<str>, HashMap<Arc<str>, Entry<H>>>,
    /// The label and the name of each entry that other proxies cannot read as it is, by the time of
    /// its change. `None` if the names are not shared.
    unsaved: Option<VecDeque<(Arc<str>, Arc<str>)>>,
}

#[derive(Debug)]
struct Entry<H> {
    /// The last position that the client has confirmed.
    confirmed: Option<Position>,
    state: State<H>,
    /// The revision of what this proxy has saved. `None` if it has yet to look.
    revision: Option<u64>,
    /// Whether the entry is among the unsaved ones.
    is_unsaved: bool,
}

#[derive(Debug)]
enum State<H> {
    /// This session holds the name.
    Held(SessionId, H),
    /// Its session ended at this time.
    Ended(Instant),
}

/// The answer to a session that enters.
#[derive(Debug, PartialEq, Eq)]
pub enum Entered<H> {
    /// The session holds the name now.
    Holds {
        /// The session that held it before. The caller must end it.
        taken_over: Option<H>,
        /// The last position confirmed under this name. `None` if there is none, or if it was
        /// confirmed too long ago.
        confirmed: Option<Position>,
    },
    /// There is no room for another name. Nothing is remembered of this session.
    Full,
}

/// A name as it is to be saved for other proxies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsaved {
    /// The label of the key.
    pub key: Arc<str>,
    /// The name.
    pub name: Arc<str>,
    /// The session that holds it. `None` if that has ended.
    pub session: Option<SessionId>,
    /// The last position confirmed.
    pub confirmed: Option<Position>,
    /// The revision that it replaces. `None` if this proxy has yet to look.
    pub revision: Option<u64>,
}

/// A claim to a name beside other proxies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claimed {
    /// The revision of the claim.
    pub revision: u64,
    /// Who saved the name before.
    pub before: SavedBy,
}

/// Who saved a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SavedBy {
    /// This proxy, or nobody.
    Us,
    /// Another proxy, with the last position confirmed there.
    Another(Option<Position>),
}

impl<H> SessionNames<H> {
    /// No names yet. Each will be remembered for `ttl` after its session has ended.
    pub fn new(ttl: Duration) -> Self {
        Self { ttl, limits: LIMITS, keys: HashMap::new(), unsaved: None }
    }

    /// Shares the names with other proxies.
    pub fn shared(self) -> Self {
        Self { unsaved: Some(VecDeque::new()), ..self }
    }

    /// Gives the name to this session, whose key has this label. Takes it from the session that
    /// holds it.
    pub fn enter(
        &mut self,
        key: &Arc<str>,
        name: &Arc<str>,
        session: SessionId,
        holder: H,
        now: Instant,
    ) -> Entered<H> {
        let (ttl, state) = (self.ttl, State::Held(session, holder));
        if let Some(entry) = self.entry(key, name) {
            let taken_over = match std::mem::replace(&mut entry.state, state) {
                State::Held(_, holder) => Some(holder),
                State::Ended(ended) => {
                    if is_over(ended, ttl, now) {
                        entry.confirmed = None;
                    }
                    None
                }
            };
            return Entered::Holds { taken_over, confirmed: entry.confirmed };
        }
        if !self.has_room(key) {
            self.expire(now);
            if !self.has_room(key) {
                return Entered::Full;
            }
        }
        let entry = Entry { confirmed: None, state, revision: None, is_unsaved: false };
        self.keys.entry(Arc::clone(key)).or_default().insert(Arc::clone(name), entry);
        Entered::Holds { taken_over: None, confirmed: None }
    }

    /// The client of this session has confirmed everything up to `position`. Ignored if the session
    /// does not hold the name, or if the client has confirmed more already.
    pub fn confirm(&mut self, key: &str, name: &str, session: SessionId, position: Position) {
        if let Some(entry) = self.held(key, name, session) {
            match &mut entry.confirmed {
                // Of another epoch, the later one to be confirmed is the later one.
                Some(confirmed) if confirmed.epoch == position.epoch => {
                    *confirmed = position.max(*confirmed);
                }
                confirmed => *confirmed = Some(position),
            }
            self.note(key, name);
        }
    }

    /// The client of this session goes back to `position`. Ignored if the session does not hold the
    /// name.
    pub fn go_back(&mut self, key: &str, name: &str, session: SessionId, position: Position) {
        if let Some(entry) = self.held(key, name, session) {
            entry.confirmed = entry.confirmed.min(Some(position));
            self.note(key, name);
        }
    }

    /// This session has ended. Ignored if it does not hold the name.
    pub fn leave(&mut self, key: &str, name: &str, session: SessionId, now: Instant) {
        if let Some(entry) = self.held(key, name, session) {
            entry.state = State::Ended(now);
            self.note(key, name);
        }
    }

    /// This session's claim has been stored. Returns the position from which it goes on. Ignored if
    /// the session does not hold the name any more.
    pub fn claimed(
        &mut self,
        key: &str,
        name: &str,
        session: SessionId,
        claimed: Claimed,
    ) -> Option<Position> {
        let entry = self.held(key, name, session)?;
        entry.revision = Some(claimed.revision);
        if let SavedBy::Another(confirmed) = claimed.before {
            entry.confirmed = confirmed;
        }
        entry.confirmed
    }

    /// Takes at most so many names that other proxies cannot read as they are, the oldest changes
    /// first.
    pub fn take_unsaved(&mut self, most: usize) -> Vec<Unsaved> {
        let Some(unsaved) = &mut self.unsaved else { return Vec::new() };
        let mut taken = Vec::new();
        while taken.len() < most
            && let Some((key, name)) = unsaved.pop_front()
        {
            // A name may have been forgotten since.
            let names = self.keys.get_mut(&key);
            let Some(entry) = names.and_then(|names| names.get_mut(&name)) else { continue };
            if std::mem::take(&mut entry.is_unsaved) {
                let session = entry.holder();
                let (confirmed, revision) = (entry.confirmed, entry.revision);
                taken.push(Unsaved { key, name, session, confirmed, revision });
            }
        }
        taken
    }

    /// A name has been saved, with this revision.
    pub fn saved(&mut self, saved: &Unsaved, revision: u64) {
        if let Some(entry) = self.entry(&saved.key, &saved.name)
            && entry.holder() == saved.session
        {
            entry.revision = Some(revision);
        }
    }

    /// A name could not be saved, and is to be saved later.
    pub fn not_saved(&mut self, failed: &Unsaved) {
        self.note(&failed.key, &failed.name);
    }

    /// Another proxy has taken a name that was to be saved. Forgets it, and returns what ends its
    /// session. Ignored if another session has entered under the name meanwhile.
    pub fn taken_elsewhere(&mut self, lost: &Unsaved) -> Option<H> {
        let names = self.keys.get_mut(&lost.key)?;
        if names.get(&lost.name)?.holder() != lost.session {
            return None;
        }
        let entry = names.remove(&lost.name)?;
        if names.is_empty() {
            self.keys.remove(&lost.key);
        }
        match entry.state {
            State::Held(_, holder) => Some(holder),
            State::Ended(_) => None,
        }
    }

    /// Lets the names be saved again: all of them, or those of open sessions.
    pub fn save_again(&mut self, all: bool) {
        let Some(unsaved) = &mut self.unsaved else { return };
        for (key, names) in &mut self.keys {
            for (name, entry) in names {
                if (all || entry.holder().is_some()) && !entry.is_unsaved {
                    entry.is_unsaved = true;
                    unsaved.push_back((Arc::clone(key), Arc::clone(name)));
                }
            }
        }
    }

    /// Forgets the names whose sessions ended too long ago. Looks at all names.
    pub fn expire(&mut self, now: Instant) {
        let ttl = self.ttl;
        self.keys.retain(|_, names| {
            names.retain(|_, entry| match entry.state {
                State::Held(..) => true,
                State::Ended(ended) => !is_over(ended, ttl, now),
            });
            !names.is_empty()
        });
    }

    /// How many names are remembered.
    pub fn count(&self) -> usize {
        self.keys.values().map(HashMap::len).sum()
    }

    fn has_room(&self, key: &str) -> bool {
        let of_key = self.keys.get(key).map_or(0, HashMap::len);
        of_key < self.limits.of_key && self.count() < self.limits.all
    }

    fn entry(&mut self, key: &str, name: &str) -> Option<&mut Entry<H>> {
        self.keys.get_mut(key)?.get_mut(name)
    }

    /// Notes that other proxies cannot read a name as it is.
    fn note(&mut self, key: &str, name: &str) {
        let Some(unsaved) = &mut self.unsaved else { return };
        let entry = self.keys.get_mut(key).and_then(|names| names.get_mut(name));
        if let Some(entry) = entry.filter(|entry| !entry.is_unsaved) {
            entry.is_unsaved = true;
            unsaved.push_back((key.into(), name.into()));
        }
    }

    /// The entry of a name, if this session holds it.
    fn held(&mut self, key: &str, name: &str, session: SessionId) -> Option<&mut Entry<H>> {
        let entry = self.entry(key, name)?;
        matches!(entry.state, State::Held(holder, _) if holder == session).then_some(entry)
    }
}

impl<H> Entry<H> {
    /// The session that holds the name.
    fn holder(&self) -> Option<SessionId> {
        match self.state {
            State::Held(session, _) => Some(session),
            State::Ended(_) => None,
        }
    }
}

/// Whether the time to remember a session that ended at this time is over.
fn is_over(ended: Instant, ttl: Duration, now: Instant) -> bool {
    now.saturating_duration_since(ended) >= ttl
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const TTL: Duration = Duration::from_secs(5);

    /// What an entered session got: the session taken over and the `seq` confirmed; `None` if full.
    type Got = Option<(Option<SessionId>, Option<u64>)>;

    fn at(seq: u64) -> Position {
        Position { epoch: 1, seq }
    }

    /// Names that are ended by their session's number.
    struct Names(SessionNames<SessionId>);

    impl Names {
        fn new(all: usize, of_key: usize) -> Self {
            let names = SessionNames::new(TTL);
            Self(SessionNames { limits: Limits { all, of_key }, ..names })
        }

        fn enter(&mut self, key: &str, name: &str, session: SessionId, now: Instant) -> Got {
            match self.0.enter(&key.into(), &name.into(), session, session, now) {
                Entered::Holds { taken_over, confirmed } => {
                    Some((taken_over, confirmed.map(|position| position.seq)))
                }
                Entered::Full => None,
            }
        }
    }

    #[test]
    fn a_name_remembers_what_was_confirmed_for_its_time() {
        let (mut names, start) = (Names::new(10, 10), Instant::now());
        assert_eq!(names.enter("k", "n", 1, start), Some((None, None)));
        names.0.confirm("k", "n", 1, at(7));
        names.0.confirm("k", "n", 1, at(3));
        // A session that is open does not expire.
        let ended = start + 100 * TTL;
        names.0.expire(ended);
        names.0.leave("k", "n", 1, ended);
        let last = ended + TTL - Duration::from_nanos(1);
        names.0.expire(last);
        assert_eq!(names.enter("k", "n", 2, last), Some((None, Some(7))));
        names.0.leave("k", "n", 2, ended);
        assert_eq!(names.enter("k", "n", 3, ended + TTL), Some((None, None)));
    }

    #[test]
    fn a_later_session_takes_over_and_the_earlier_one_changes_nothing_more() {
        let (mut names, now) = (Names::new(10, 10), Instant::now());
        names.enter("k", "n", 1, now);
        names.0.confirm("k", "n", 1, at(1));
        assert_eq!(names.enter("k", "n", 2, now), Some((Some(1), Some(1))));
        names.0.confirm("k", "n", 1, at(9));
        names.0.leave("k", "n", 1, now);
        assert_eq!(names.enter("k", "n", 3, now), Some((Some(2), Some(1))));
        assert_eq!(names.enter("other", "n", 4, now), Some((None, None)));
    }

    #[test]
    fn the_names_of_a_key_take_no_room_of_another() {
        let (mut names, now) = (Names::new(LIMITS.all, LIMITS.of_key), Instant::now());
        let mut sessions = 0..;
        for key in 0..LIMITS.all / LIMITS.of_key {
            for name in 0..LIMITS.of_key {
                let (key, name) = (key.to_string(), name.to_string());
                let session = sessions.next().unwrap();
                assert_eq!(names.enter(&key, &name, session, now), Some((None, None)));
                names.0.leave(&key, &name, session, now);
            }
            assert_eq!(names.enter(&key.to_string(), "one more", 0, now), None);
        }
        assert_eq!(names.enter("another", "n", 0, now), None);
        assert_eq!(names.0.count(), 10_000);
        assert_eq!(names.enter("another", "n", 0, now + TTL), Some((None, None)));
        assert_eq!(names.0.count(), 1);
    }

    fn unsaved(session: Option<SessionId>, seq: u64, revision: Option<u64>) -> Unsaved {
        let (key, name) = ("k".into(), "n".into());
        Unsaved { key, name, session, confirmed: Some(at(seq)), revision }
    }

    #[test]
    fn what_changed_is_saved_once_and_with_the_last_revision() {
        let (mut names, now) = (Names::new(10, 10), Instant::now());
        names.0 = names.0.shared();
        names.enter("k", "n", 1, now);
        assert_eq!(names.0.take_unsaved(9), [], "there is nothing to go on from");
        names.0.confirm("k", "n", 1, at(1));
        names.0.confirm("k", "n", 1, at(2));
        assert_eq!(names.0.take_unsaved(0), []);
        assert_eq!(names.0.take_unsaved(9), [unsaved(Some(1), 2, None)]);
        assert_eq!(names.0.take_unsaved(9), []);
        names.0.saved(&unsaved(Some(1), 2, None), 70);
        names.0.go_back("k", "n", 1, at(1));
        let taken = names.0.take_unsaved(9);
        assert_eq!(taken, [unsaved(Some(1), 1, Some(70))]);
        names.0.not_saved(&taken[0]);
        assert_eq!(names.0.take_unsaved(9), taken);
        names.0.save_again(false);
        names.0.leave("k", "n", 1, now);
        let ended = [unsaved(None, 1, Some(70))];
        assert_eq!(names.0.take_unsaved(9), ended);
        names.0.save_again(false);
        assert_eq!(names.0.take_unsaved(9), [], "its time goes by");
        names.0.save_again(true);
        assert_eq!(names.0.take_unsaved(9), ended);
    }

    #[test]
    fn a_claim_brings_what_another_proxy_has_saved() {
        let (mut names, now) = (Names::new(10, 10), Instant::now());
        names.0 = names.0.shared();
        names.enter("k", "n", 1, now);
        let by = |before| Claimed { revision: 5, before };
        let another = by(SavedBy::Another(Some(at(7))));
        assert_eq!(names.0.claimed("k", "n", 1, another), Some(at(7)));
        names.0.confirm("k", "n", 1, at(9));
        names.enter("k", "n", 2, now);
        assert_eq!(names.0.claimed("k", "n", 1, another), None, "another session holds it");
        assert_eq!(names.0.claimed("k", "n", 2, by(SavedBy::Us)), Some(at(9)));
        assert_eq!(names.0.claimed("k", "n", 2, by(SavedBy::Another(None))), None);
    }

    #[test]
    fn a_name_that_another_proxy_has_taken_is_forgotten() {
        let (mut names, now) = (Names::new(10, 10), Instant::now());
        names.0 = names.0.shared();
        names.enter("k", "n", 1, now);
        let first = unsaved(Some(1), 7, Some(5));
        names.enter("k", "n", 2, now);
        assert_eq!(names.0.taken_elsewhere(&first), None, "a later session holds it");
        names.0.confirm("k", "n", 2, at(7));
        assert_eq!(names.0.taken_elsewhere(&unsaved(Some(2), 7, Some(5))), Some(2));
        assert_eq!((names.0.count(), names.0.take_unsaved(9)), (0, vec![]));
        names.0.confirm("k", "n", 2, at(8));
        names.0.leave("k", "n", 2, now);
        assert_eq!(names.enter("k", "n", 3, now), Some((None, None)));
    }

    /// A name in the model.
    struct Known {
        key: u8,
        name: u8,
        holder: Option<SessionId>,
        ended: Instant,
        confirmed: Option<u64>,
    }

    /// The model: a list, in which nothing is kept a moment too long.
    struct Model(Vec<Known>);

    impl Model {
        const ALL: usize = 5;
        const OF_KEY: usize = 3;

        fn forget(&mut self, now: Instant) {
            self.0.retain(|known| known.holder.is_some() || known.ended + TTL > now);
        }

        fn enter(&mut self, key: u8, name: u8, session: SessionId) -> Got {
            match self.0.iter_mut().find(|known| (known.key, known.name) == (key, name)) {
                Some(known) => Some((known.holder.replace(session), known.confirmed)),
                None => {
                    let of_key = self.0.iter().filter(|known| known.key == key).count();
                    if self.0.len() == Self::ALL || of_key == Self::OF_KEY {
                        return None;
                    }
                    let (holder, ended) = (Some(session), Instant::now());
                    self.0.push(Known { key, name, holder, ended, confirmed: None });
                    Some((None, None))
                }
            }
        }

        fn of(&mut self, session: SessionId) -> Option<&mut Known> {
            self.0.iter_mut().find(|known| known.holder == Some(session))
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        /// A new session of this key and name.
        Enter(u8, u8),
        /// Of the session with this number, if there is one.
        Confirm(SessionId, u64),
        Leave(SessionId),
        Expire,
        Wait(u32),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0..3_u8, 0..4_u8).prop_map(|(key, name)| Step::Enter(key, name)),
            3 => (0..40_u64, 0..9_u64).prop_map(|(session, seq)| Step::Confirm(session, seq)),
            3 => (0..40_u64).prop_map(Step::Leave),
            1 => Just(Step::Expire),
            2 => (0..7_u32).prop_map(Step::Wait),
        ];
        vec(step, 0..120)
    }

    proptest! {
        #[test]
        fn any_schedule_is_answered_as_the_model_answers(steps in steps()) {
            let mut names = Names::new(Model::ALL, Model::OF_KEY);
            let (mut model, mut now) = (Model(Vec::new()), Instant::now());
            // Key and name of each session.
            let mut sessions: Vec<(u8, u8)> = Vec::new();
            for step in steps {
                model.forget(now);
                let text = |session: SessionId| {
                    let (key, name) = sessions.get(usize::try_from(session).unwrap())?;
                    Some((key.to_string(), name.to_string()))
                };
                match step {
                    Step::Enter(key, name) => {
                        let session = sessions.len() as SessionId;
                        let got = names.enter(&key.to_string(), &name.to_string(), session, now);
                        prop_assert_eq!(got, model.enter(key, name, session));
                        sessions.push((key, name));
                    }
                    Step::Confirm(session, seq) => {
                        let Some((key, name)) = text(session) else { continue };
                        names.0.confirm(&key, &name, session, at(seq));
                        if let Some(known) = model.of(session) {
                            let before = known.confirmed.unwrap_or(0);
                            known.confirmed = Some(before.max(seq));
                        }
                    }
                    Step::Leave(session) => {
                        let Some((key, name)) = text(session) else { continue };
                        names.0.leave(&key, &name, session, now);
                        if let Some(known) = model.of(session) {
                            (known.holder, known.ended) = (None, now);
                        }
                    }
                    Step::Expire => {
                        names.0.expire(now);
                        prop_assert_eq!(names.0.count(), model.0.len());
                    }
                    Step::Wait(seconds) => now += seconds * SECOND,
                }
                prop_assert!(names.0.count() <= Model::ALL);
            }
        }
    }
}
