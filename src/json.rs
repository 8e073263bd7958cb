// SPDX-License-Identifier: BSD-3-Clause
//! Values as JSON (RFC 8259), on one line. They are written and never read here, which is little enough to
//! need no crate.

use std::fmt::{self, Write};
use std::time::Duration;

use crate::proto::codec::is_bidi_override;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Not known, or not there.
    Null,
    /// Yes or no.
    Bool(bool),
    /// A whole number.
    Number(u64),
    /// Seconds, to the millisecond.
    Time(Duration),
    /// Seconds, to the nanosecond.
    Precise(Duration),
    /// A text, escaped when it is written.
    Text(String),
    /// Values in order.
    List(Vec<Value>),
    /// Keys and their values.
    Object(Vec<(&'static str, Value)>),
    /// Keys that are known only now.
    Map(Vec<(String, Value)>),
}

impl Value {
    /// A time, or nothing.
    pub fn time(time: Option<Duration>) -> Self {
        time.map_or(Self::Null, Self::Time)
    }

    /// Some text.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    /// Writes it.
    pub fn write(&self, out: &mut String) {
        match self {
            Self::Null => out.push_str("null"),
            Self::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Self::Number(number) => write_to(out, format_args!("{number}")),
            Self::Time(time) => {
                write_to(
                    out,
                    format_args!("{}.{:03}", time.as_secs(), time.subsec_millis()),
                );
            }
            Self::Precise(time) => {
                write_to(
                    out,
                    format_args!("{}.{:09}", time.as_secs(), time.subsec_nanos()),
                );
            }
            Self::Text(text) => write_text(out, text),
            Self::List(values) => {
                out.push('[');
                for (at, value) in values.iter().enumerate() {
                    if at > 0 {
                        out.push(',');
                    }
                    value.write(out);
                }
                out.push(']');
            }
            Self::Object(members) => write_object(out, members),
            Self::Map(members) => write_object(out, members),
        }
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Number(value)
    }
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Self::Number(value.into())
    }
}

impl From<usize> for Value {
    fn from(value: usize) -> Self {
        Self::Number(value as u64)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::Text(value)
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

impl<T: Into<Value>> FromIterator<T> for Value {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        Self::List(values.into_iter().map(Into::into).collect())
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = String::new();
        self.write(&mut line);
        f.write_str(&line)
    }
}

fn write_object<K: AsRef<str>>(out: &mut String, members: &[(K, Value)]) {
    out.push('{');
    for (at, (key, value)) in members.iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        write_text(out, key.as_ref());
        out.push(':');
        value.write(out);
    }
    out.push('}');
}

fn write_to(out: &mut String, text: std::fmt::Arguments<'_>) {
    // A string takes everything.
    let _ = out.write_fmt(text);
}

fn write_text(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            // What a terminal could take for more than text.
            c if c.is_control() || is_bidi_override(c) => {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    write_to(out, format_args!("\\u{unit:04x}"));
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(value: &Value) -> String {
        let mut out = String::new();
        value.write(&mut out);
        out
    }

    #[test]
    fn values_are_json() {
        let value = Value::Object(vec![
            ("ok", Value::Bool(true)),
            ("none", Value::time(None)),
            ("map", Value::Map(vec![("k".to_owned(), Value::Null)])),
            ("time", Value::Time(Duration::from_millis(12_005))),
            (
                "list",
                Value::List(vec![
                    Value::Number(u64::MAX),
                    Value::text("a\"\\\n\u{9b}\u{202e}ä"),
                ]),
            ),
        ]);
        assert_eq!(
            written(&value),
            r#"{"ok":true,"none":null,"map":{"k":null},"time":12.005,"list":[18446744073709551615,"a\"\\\u000a\u009b\u202eä"]}"#
        );
    }

    proptest! {
        #[test]
        fn any_text_comes_back(text in any::<String>()) {
            let line = written(&Value::Text(text.clone()));
            prop_assert!(!line.contains('\n'));
            let read: serde_json::Value = serde_json::from_str(&line).expect("JSON");
            prop_assert_eq!(read.as_str(), Some(text.as_str()));
        }
    }
}
