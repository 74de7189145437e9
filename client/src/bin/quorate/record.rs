//! Records as lines: what `import` reads and `export` writes.
//!
//! A line is one of two things. A *plain* line is a JSON object; its key stands in a field that the command line names,
//! and its value is the line itself. A *record* line, told by its `"$quorate"` field, carries key and values apart, so
//! that anything that a key can hold is restored exactly:
//!
//! ```text
//! {"$quorate":"record","key":"cart:42","value_json":{"items":["book"]}}
//! {"$quorate":"record","key":"note","value":"plain text","expires_unix_ms":1764000000000}
//! {"$quorate":"record","key_base64":"/wA=","siblings":[{"value":"a"},{"value_base64":"/wE="}]}
//! ```
//!
//! `value_json` is there to be read by people and tools: it is used for a value that is a JSON object or array on one
//! line, and taken verbatim. Values that are not text, or are full of control characters, are in base64. The form of each value follows from its bytes alone, and siblings are sorted, so equal
//! contents give equal lines.

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use client::{KEY_BYTES_MAX, ReturnedValue, VALUE_BYTES_MAX};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, value::RawValue};
use thiserror::Error;

/// The field that tells a record line.
const MARK: &str = "$quorate";
/// What it says.
const MARK_RECORD: &str = "record";

/// A key with its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) key: Bytes,
    /// One, or several concurrent ones, sorted.
    pub(crate) values: Vec<RecordValue>,
}

/// A value of a record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RecordValue {
    pub(crate) bytes: Bytes,
    pub(crate) expires_unix_ms: Option<u64>,
}

/// Why a line is no record.
#[derive(Debug, Error)]
pub(crate) enum LineError {
    #[error("not a JSON object: {}", in_line(.0))]
    NotAnObject(serde_json::Error),
    #[error("it has no field `{0}`")]
    NoKey(String),
    #[error("its field `{0}` is neither a string nor a whole number")]
    BadKey(String),
    #[error("its key is empty")]
    EmptyKey,
    #[error("its key has {0} bytes, the limit is {KEY_BYTES_MAX}")]
    LongKey(usize),
    #[error("its value has {0} bytes, the limit is {VALUE_BYTES_MAX}")]
    LongValue(usize),
    #[error("it is longer than any record can be")]
    LongLine,
    #[error("it is not UTF-8")]
    NotUtf8,
    #[error("its `$quorate` field says that it is a record, and it is none: {}", in_line(.0))]
    NotARecord(serde_json::Error),
    #[error("its `$quorate` field is not \"record\": it is of a later version, or not of an export")]
    UnknownMark,
    #[error("a record has either `key` or `key_base64`")]
    KeyForm,
    #[error(
        "a record has either one value or `siblings`, and a value one of `value`, `value_json` and `value_base64`"
    )]
    ValueForm,
    #[error("its base64 cannot be read")]
    BadBase64,
}

/// What the parser says of a line. That it was its first says nothing: each is parsed alone.
fn in_line(error: &serde_json::Error) -> String {
    error.to_string().replace(" at line 1 column ", " at column ")
}

/// A record line, as JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordLine {
    #[serde(rename = "$quorate")]
    mark: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value_json: Option<Box<RawValue>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_unix_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    siblings: Option<Vec<ValueForms>>,
}

/// A value in one of its forms.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ValueForms {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value_json: Option<Box<RawValue>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_unix_ms: Option<u64>,
}

impl Record {
    /// What a key was found to hold.
    pub(crate) fn of(key: Bytes, values: &[ReturnedValue]) -> Record {
        let value = |value: &ReturnedValue| RecordValue {
            bytes: value.bytes.clone(),
            expires_unix_ms: value.expires_unix_ms,
        };
        let mut values: Vec<_> = values.iter().map(value).collect();
        values.sort();
        Record { key, values }
    }

    /// Reads a line, which has no newline at its end.
    pub(crate) fn parse(line: &[u8], key_field: &str) -> Result<Record, LineError> {
        let text = std::str::from_utf8(line).map_err(|_| LineError::NotUtf8)?;
        let object: Map<String, Value> = serde_json::from_str(text).map_err(LineError::NotAnObject)?;
        let record = match object.get(MARK) {
            Some(Value::String(mark)) if mark == MARK_RECORD => {
                let line: RecordLine = serde_json::from_str(text).map_err(LineError::NotARecord)?;
                line.into_record()?
            }
            Some(_) => return Err(LineError::UnknownMark),
            None => {
                let bytes = Bytes::copy_from_slice(line);
                let values = vec![RecordValue { bytes, expires_unix_ms: None }];
                Record { key: key_of(&object, key_field)?.into(), values }
            }
        };
        record.checked()
    }

    /// The line that [`Record::parse`] reads back. With a key field, a value that is a plain line of this key's is
    /// written as it is.
    pub(crate) fn line(&self, key_field: Option<&str>) -> Vec<u8> {
        if let Some(field) = key_field
            && let [value] = self.values.as_slice()
            && value.expires_unix_ms.is_none()
            && is_one_line_of_json(&value.bytes)
            && Record::parse(&value.bytes, field).is_ok_and(|parsed| parsed == *self)
        {
            return value.bytes.to_vec();
        }
        let mut line = RecordLine {
            mark: MARK_RECORD.to_owned(),
            key: None,
            key_base64: None,
            value: None,
            value_json: None,
            value_base64: None,
            expires_unix_ms: None,
            siblings: None,
        };
        match std::str::from_utf8(&self.key) {
            Ok(key) => line.key = Some(key.to_owned()),
            Err(_) => line.key_base64 = Some(BASE64_STANDARD.encode(&self.key)),
        }
        match self.values.as_slice() {
            [value] => {
                let forms = ValueForms::of(value);
                line.value = forms.value;
                line.value_json = forms.value_json;
                line.value_base64 = forms.value_base64;
                line.expires_unix_ms = forms.expires_unix_ms;
            }
            siblings => line.siblings = Some(siblings.iter().map(ValueForms::of).collect()),
        }
        serde_json::to_vec(&line).expect("keys are strings, and nothing fails by itself")
    }

    fn checked(mut self) -> Result<Record, LineError> {
        if self.key.is_empty() {
            return Err(LineError::EmptyKey);
        }
        if self.key.len() > KEY_BYTES_MAX {
            return Err(LineError::LongKey(self.key.len()));
        }
        if let Some(long) =
            self.values.iter().map(|value| value.bytes.len()).find(|len| *len > VALUE_BYTES_MAX)
        {
            return Err(LineError::LongValue(long));
        }
        self.values.sort();
        Ok(self)
    }
}

impl RecordLine {
    fn into_record(self) -> Result<Record, LineError> {
        let key = match (self.key, self.key_base64) {
            (Some(key), None) => key.into(),
            (None, Some(encoded)) => decode(&encoded)?,
            (Some(_), Some(_)) | (None, None) => return Err(LineError::KeyForm),
        };
        let one = ValueForms {
            value: self.value,
            value_json: self.value_json,
            value_base64: self.value_base64,
            expires_unix_ms: self.expires_unix_ms,
        };
        let values = match self.siblings {
            None => vec![one.into_value()?],
            Some(siblings) if !siblings.is_empty() && one.is_empty() => {
                siblings.into_iter().map(ValueForms::into_value).collect::<Result<_, _>>()?
            }
            Some(_) => return Err(LineError::ValueForm),
        };
        Ok(Record { key, values })
    }
}

impl ValueForms {
    fn of(value: &RecordValue) -> ValueForms {
        let mut forms = ValueForms { expires_unix_ms: value.expires_unix_ms, ..ValueForms::default() };
        match std::str::from_utf8(&value.bytes) {
            Err(_) => forms.value_base64 = Some(BASE64_STANDARD.encode(&value.bytes)),
            Ok(text) if is_one_line_of_json(&value.bytes) => {
                forms.value_json = RawValue::from_string(text.to_owned()).ok();
            }
            Ok(text) if text.bytes().all(is_short_in_json) => forms.value = Some(text.to_owned()),
            Ok(_) => forms.value_base64 = Some(BASE64_STANDARD.encode(&value.bytes)),
        }
        forms
    }

    fn is_empty(&self) -> bool {
        let ValueForms { value, value_json, value_base64, expires_unix_ms } = self;
        value.is_none() && value_json.is_none() && value_base64.is_none() && expires_unix_ms.is_none()
    }

    fn into_value(self) -> Result<RecordValue, LineError> {
        let bytes = match (self.value, self.value_json, self.value_base64) {
            (Some(text), None, None) => text.into(),
            (None, Some(json), None) => Bytes::copy_from_slice(json.get().as_bytes()),
            (None, None, Some(encoded)) => decode(&encoded)?,
            _ => return Err(LineError::ValueForm),
        };
        Ok(RecordValue { bytes, expires_unix_ms: self.expires_unix_ms })
    }
}

/// The key of a plain line.
fn key_of(object: &Map<String, Value>, field: &str) -> Result<String, LineError> {
    match object.get(field) {
        Some(Value::String(key)) => Ok(key.clone()),
        Some(Value::Number(number)) if number.is_i64() || number.is_u64() => Ok(number.to_string()),
        Some(_) => Err(LineError::BadKey(field.to_owned())),
        None => Err(LineError::NoKey(field.to_owned())),
    }
}

/// Whether a value is a JSON object or array that stands on one line without space around it, so that it comes out of
/// a line as it went in.
fn is_one_line_of_json(bytes: &[u8]) -> bool {
    let is_enclosed =
        matches!((bytes.first(), bytes.last()), (Some(b'{'), Some(b'}')) | (Some(b'['), Some(b']')));
    let has_newline = bytes.iter().any(|byte| matches!(byte, b'\n' | b'\r'));
    is_enclosed && !has_newline && serde_json::from_slice::<&RawValue>(bytes).is_ok()
}

/// Whether a byte of text takes at most two bytes in JSON. Other control characters take six, and text full of them is
/// no text.
fn is_short_in_json(byte: u8) -> bool {
    byte >= b' ' || matches!(byte, b'\n' | b'\r' | b'\t')
}

fn decode(encoded: &str) -> Result<Bytes, LineError> {
    BASE64_STANDARD.decode(encoded).map(Bytes::from).map_err(|_| LineError::BadBase64)
}

#[cfg(test)]
mod tests {
    use proptest::{
        collection::vec,
        prelude::{Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest},
    };

    use super::*;

    fn record(key: &[u8], values: &[&[u8]]) -> Record {
        let value =
            |bytes: &&[u8]| RecordValue { bytes: Bytes::copy_from_slice(bytes), expires_unix_ms: None };
        let mut values: Vec<_> = values.iter().map(value).collect();
        values.sort();
        Record { key: Bytes::copy_from_slice(key), values }
    }

    fn line(record: &Record) -> String {
        String::from_utf8(record.line(None)).unwrap()
    }

    #[test]
    fn the_value_of_a_plain_line_is_the_line() {
        let text = br#"{ "sku": "a-1",  "price": 1.10 }"#;
        assert_eq!(Record::parse(text, "sku").unwrap(), record(b"a-1", &[text]));
        let text = br#"{"id":42}"#;
        assert_eq!(Record::parse(text, "id").unwrap(), record(b"42", &[text]));
    }

    #[test]
    fn whatever_a_key_holds_reads_back_as_it_was() {
        let expiring = Record {
            key: Bytes::from_static(b"k"),
            values: vec![RecordValue { bytes: Bytes::from_static(b"v"), expires_unix_ms: Some(9) }],
        };
        let json_like: [&[u8]; 8] = [
            b"{\"a\": 1}",
            b"{\"a\":\n1}",
            b" {}",
            b"[1, 2]",
            b"{\"a\":",
            b"\"a\"",
            b"1",
            b"{\"$quorate\":\"x\"}",
        ];
        let mut records: Vec<_> = json_like.iter().map(|value| record(b"key", &[value])).collect();
        records.extend([
            record(b"key", &[b""]),
            record(b"k\xff", &[b"\xff\x00"]),
            record("käse\n".as_bytes(), &["zeile\r\n".as_bytes()]),
            record(b"key", &[b"two", b"one", b"{}", b"\xff"]),
            record(b"key", &[b"\x1b[2J\0"]),
            expiring,
        ]);
        for record in records {
            let text = record.line(None);
            assert!(!text.contains(&b'\n'));
            assert_eq!(Record::parse(&text, "key").unwrap(), record);
            let text = record.line(Some("key"));
            assert_eq!(Record::parse(&text, "key").unwrap(), record);
        }
    }

    proptest! {
        #[test]
        fn any_key_and_values_read_back(
            key in vec(any::<u8>(), 1..40),
            values in vec(prop_oneof![vec(any::<u8>(), 0..40), "\\PC{0,20}".prop_map(String::into_bytes)], 1..4),
            expires_unix_ms in any::<Option<u64>>(),
        ) {
            let value = |bytes: Vec<u8>| RecordValue { bytes: bytes.into(), expires_unix_ms };
            let mut values: Vec<_> = values.into_iter().map(value).collect();
            values.sort();
            let record = Record { key: key.into(), values };
            for line in [record.line(None), record.line(Some("key"))] {
                prop_assert!(!line.contains(&b'\n'));
                prop_assert_eq!(Record::parse(&line, "key").unwrap(), record.clone());
            }
        }

        #[test]
        fn no_line_makes_parsing_panic(line in vec(any::<u8>(), 0..80), text in r#"\{("\$?[a-z]{1,8}":("record"|[0-9.]{1,4}|\[\]),?){0,4}\}"#) {
            let _ = Record::parse(&line, "key");
            let _ = Record::parse(text.as_bytes(), "key");
        }
    }

    #[test]
    fn the_lines_of_an_export_stay_as_they_are() {
        let golden = [
            (record(b"a", &[b"text"]), r#"{"$quorate":"record","key":"a","value":"text"}"#),
            (record(b"a", &[b"{\"b\": 1}"]), r#"{"$quorate":"record","key":"a","value_json":{"b": 1}}"#),
            (
                record(b"\xff", &[b"\xff"]),
                r#"{"$quorate":"record","key_base64":"/w==","value_base64":"/w=="}"#,
            ),
            (
                record(b"a", &[b"2", b"1"]),
                r#"{"$quorate":"record","key":"a","siblings":[{"value":"1"},{"value":"2"}]}"#,
            ),
        ];
        for (record, text) in golden {
            assert_eq!(line(&record), text);
        }
    }

    #[test]
    fn a_plain_line_is_exported_as_it_is_if_its_field_holds_its_key() {
        let plain = br#"{"sku":"a-1","price":1.10}"#;
        assert_eq!(record(b"a-1", &[plain]).line(Some("sku")), plain);
        for other in [record(b"a-2", &[plain]), record(b"a-1", &[plain, b"x"])] {
            assert!(other.line(Some("sku")).starts_with(br#"{"$quorate""#));
        }
    }

    #[test]
    fn what_is_no_record_is_refused_with_the_reason() {
        let long_key = format!(r#"{{"id":"{}"}}"#, "k".repeat(KEY_BYTES_MAX + 1));
        for (line, reason) in [
            (r#"{"id":"#, "not a JSON object"),
            (r#"["id"]"#, "not a JSON object"),
            (r#"{"name":1}"#, "no field `id`"),
            (r#"{"id":1.5}"#, "neither a string nor a whole number"),
            (r#"{"id":null}"#, "neither a string nor a whole number"),
            (r#"{"id":""}"#, "key is empty"),
            (&long_key, "its key has 4097 bytes"),
            (r#"{"$quorate":"hints"}"#, "of a later version"),
            (r#"{"$quorate":"record","key":"a"}"#, "either one value"),
            (r#"{"$quorate":"record","key":"a","value":"b","value_base64":"Yg=="}"#, "either one value"),
            (r#"{"$quorate":"record","key":"a","siblings":[]}"#, "either one value"),
            (r#"{"$quorate":"record","value":"b"}"#, "either `key`"),
            (r#"{"$quorate":"record","key":"a","value_base64":"?"}"#, "base64"),
            (r#"{"$quorate":"record","key":"a","value":"b","color":1}"#, "unknown field `color`"),
        ] {
            let error = Record::parse(line.as_bytes(), "id").unwrap_err().to_string();
            assert!(!error.contains("line 1"), "{error}");
            assert!(error.contains(reason), "{line}: {error}");
        }
        assert!(matches!(Record::parse(b"{\"id\":\"\xff\"}", "id"), Err(LineError::NotUtf8)));
    }
}
