//! Sets of channels that need little memory while they are small. Nearly all sessions have small
//! ones.

use std::{
    collections::BTreeSet,
    hash::{Hash, Hasher},
};

use crate::protocol::channel::Channel;

/// Up to this many channels are kept in a sorted vector. A larger set is a tree, so that a change
/// does not move all that it holds.
const MAX_FLAT: usize = 64;

/// A set of channels.
#[derive(Debug, Clone)]
pub struct ChannelSet(Form);

#[derive(Debug, Clone)]
enum Form {
    /// In order.
    Flat(Vec<Channel>),
    Tree(BTreeSet<Channel>),
}

impl Default for ChannelSet {
    fn default() -> Self {
        Self(Form::Flat(Vec::new()))
    }
}

impl ChannelSet {
    /// How many channels it holds.
    pub fn len(&self) -> usize {
        match &self.0 {
            Form::Flat(channels) => channels.len(),
            Form::Tree(channels) => channels.len(),
        }
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it holds this one.
    pub fn contains(&self, channel: &Channel) -> bool {
        match &self.0 {
            Form::Flat(channels) => channels.binary_search(channel).is_ok(),
            Form::Tree(channels) => channels.contains(channel),
        }
    }

    /// The channels, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Channel> {
        let (flat, tree) = match &self.0 {
            Form::Flat(channels) => (Some(channels), None),
            Form::Tree(channels) => (None, Some(channels)),
        };
        flat.into_iter().flatten().chain(tree.into_iter().flatten())
    }

    /// Adds channels. Skips those that it already holds.
    pub fn add(&mut self, added: impl IntoIterator<Item = Channel>) {
        let added: BTreeSet<Channel> = added.into_iter().collect();
        match &mut self.0 {
            Form::Tree(channels) => channels.extend(added),
            Form::Flat(channels) if channels.len() + added.len() > MAX_FLAT => {
                self.0 = Form::Tree(channels.drain(..).chain(added).collect());
            }
            Form::Flat(channels) => {
                channels.reserve_exact(added.len());
                for channel in added {
                    if let Err(position) = channels.binary_search(&channel) {
                        channels.insert(position, channel);
                    }
                }
            }
        }
    }

    /// Removes channels. Skips those that it does not hold.
    pub fn remove<'a>(&mut self, removed: impl IntoIterator<Item = &'a Channel>) {
        match &mut self.0 {
            Form::Flat(channels) => {
                for channel in removed {
                    if let Ok(position) = channels.binary_search(channel) {
                        channels.remove(position);
                    }
                }
            }
            Form::Tree(channels) => {
                for channel in removed {
                    channels.remove(channel);
                }
                // Well below the limit, so that a set near the limit is not converted at each
                // change.
                if channels.len() <= MAX_FLAT / 2 {
                    self.0 = Form::Flat(std::mem::take(channels).into_iter().collect());
                }
            }
        }
    }
}

impl FromIterator<Channel> for ChannelSet {
    fn from_iter<I: IntoIterator<Item = Channel>>(channels: I) -> Self {
        let mut set = Self::default();
        set.add(channels);
        set
    }
}

impl PartialEq for ChannelSet {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

impl Eq for ChannelSet {}

impl Hash for ChannelSet {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.len().hash(state);
        for channel in self.iter() {
            channel.hash(state);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        hash::{BuildHasher, RandomState},
        ops::Range,
    };

    use super::*;
    use crate::protocol::kind::Kind;

    fn channel(n: u32) -> Channel {
        Channel::Symbol(Kind::T, format!("S{n}").into())
    }

    #[test]
    fn it_holds_what_a_plain_set_would_hold() {
        let mut random = fastrand::Rng::with_seed(9);
        let (mut set, mut model) = (ChannelSet::default(), BTreeSet::new());
        assert!(set.is_empty());
        let hasher = RandomState::new();
        let (mut flat, mut tree) = (0, 0);
        for step in 0..3_000 {
            let some: Vec<Channel> =
                (0..random.u32(0..12)).map(|_| channel(random.u32(0..120))).collect();
            // Grows for a while, then shrinks, and so on.
            if random.u32(0..10) < if step / 100 % 2 == 0 { 8 } else { 1 } {
                set.add(some.clone());
                model.extend(some);
            } else {
                set.remove(&some);
                for channel in &some {
                    model.remove(channel);
                }
            }
            assert!(set.iter().eq(model.iter()));
            assert_eq!((set.len(), set.is_empty()), (model.len(), model.is_empty()));
            let probe = channel(random.u32(0..120));
            assert_eq!(set.contains(&probe), model.contains(&probe));
            let same: ChannelSet = model.iter().cloned().collect();
            assert_eq!(set, same);
            assert_eq!(hasher.hash_one(&set), hasher.hash_one(&same));
            match set.0 {
                Form::Flat(_) => flat += 1,
                Form::Tree(_) => tree += 1,
            }
        }
        assert!(flat > 100 && tree > 100, "{flat} {tree}");
    }

    #[test]
    fn only_large_sets_are_trees() {
        let flat = |set: &ChannelSet| matches!(set.0, Form::Flat(_));
        for (held, added, expected) in
            [(0, 64, true), (0, 65, false), (0, 66, false), (32, 32, true), (32, 33, false)]
        {
            let mut set: ChannelSet = (0..held).map(channel).collect();
            set.add((held..held + added).map(channel));
            assert_eq!(flat(&set), expected, "{held} and {added}");
        }
        let mut set: ChannelSet = (0..65).map(channel).collect();
        for left in (0..65).rev() {
            set.remove(&[channel(left)]);
            assert_eq!(flat(&set), left <= 32, "{left} left");
        }
    }

    #[test]
    fn sets_that_differ_are_not_equal() {
        let set = |channels: Range<u32>| channels.map(channel).collect::<ChannelSet>();
        let hasher = RandomState::new();
        for other in [0..0, 0..2, 0..4, 1..4] {
            assert_ne!(set(0..3), set(other.clone()));
            assert_ne!(hasher.hash_one(set(0..3)), hasher.hash_one(set(other)));
        }
    }
}
