//! The members of a JSON object in their order, repeated ones included.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::{Value, value::RawValue};

/// Keys and values, not decoded.
pub(crate) struct Members<'a>(Vec<(&'a RawValue, &'a RawValue)>);

impl<'a> Members<'a> {
    /// Reads the members of an object. `None` for anything else.
    pub(crate) fn read(text: &'a str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// The first value of this key, in any spelling of the key, if it is a string.
    pub(crate) fn first_string(&self, key: &str) -> Option<String> {
        let (_, value) = self.0.iter().find(|(name, _)| decoded(name).as_deref() == Some(key))?;
        decoded(value)
    }

    /// The value of a key that stands at most once; `Some(None)` if it is missing. `None` if it
    /// stands more than once, if its value is more than a parser accepts, or if some key of the
    /// object is not valid text.
    pub(crate) fn only(&self, key: &str) -> Option<Option<Value>> {
        match self.only_raw(key)? {
            None => Some(None),
            Some(value) => serde_json::from_str(value.get()).ok().map(Some),
        }
    }

    /// The same with the text of the value, whatever it is.
    pub(crate) fn only_raw(&self, key: &str) -> Option<Option<&'a RawValue>> {
        let mut found = None;
        for (name, value) in &self.0 {
            if decoded(name)? == key && found.replace(*value).is_some() {
                return None;
            }
        }
        Some(found)
    }
}

fn decoded(raw: &RawValue) -> Option<String> {
    serde_json::from_str(raw.get()).ok()
}

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}
