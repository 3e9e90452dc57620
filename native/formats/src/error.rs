//! One shape for every error that leaves a native crate: a code of the error tree, a sentence, and typed fields.

/// A typed fact of an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FieldValue {
    /// A word or a path.
    Text(String),
    /// A number.
    Int(i64),
    /// A list, for example of digests.
    Texts(Vec<String>),
}

/// An error as the rest of the house knows it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct NativeError {
    /// Slug of `buildnet.errors`.
    pub code: &'static str,
    /// One sentence for a person.
    pub message: String,
    /// Facts for programs.
    pub fields: Vec<(&'static str, FieldValue)>,
}

impl NativeError {
    /// An error without fields.
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), fields: Vec::new() }
    }

    /// The same error with one more field.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: FieldValue) -> Self {
        self.fields.push((name, value));
        self
    }

    /// A malformed field of a request.
    pub fn invalid(field: &str, message: impl Into<String>) -> Self {
        Self::new("invalid_request", message).with("field", FieldValue::Text(field.to_owned()))
    }

    /// Blobs that are needed and absent.
    pub fn missing(digests: &[crate::Digest]) -> Self {
        let texts: Vec<String> = digests.iter().map(ToString::to_string).collect();
        let first = texts.first().cloned().unwrap_or_default();
        Self::new("blobs_missing", format!("{} blobs are missing, the first is {first}", texts.len()))
            .with("digests", FieldValue::Texts(texts))
    }

    /// Something that does not exist.
    pub fn not_found(kind: &'static str, name: impl Into<String>) -> Self {
        let name = name.into();
        Self::new("not_found", format!("there is no {kind} {name}"))
            .with("kind", FieldValue::Text(kind.to_owned()))
            .with("name", FieldValue::Text(name))
    }

    /// Past a stated limit.
    pub fn too_large(message: impl Into<String>, limit: u64) -> Self {
        Self::new("too_large", message).with("limit", FieldValue::Int(limit.cast_signed()))
    }

    /// Bytes that are not what their digest says.
    pub fn mismatch(expected: crate::Digest, actual: crate::Digest, blame: &'static str) -> Self {
        Self::new("digest_mismatch", format!("the bytes have digest {actual}, not {expected}"))
            .with("expected", FieldValue::Text(expected.to_string()))
            .with("actual", FieldValue::Text(actual.to_string()))
            .with("blame", FieldValue::Text(blame.to_owned()))
    }

    /// Our fault.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new("internal", message)
    }
}
