//! Why a storage operation failed, and what that means for the caller.

use std::path::PathBuf;

/// What a caller can do about a [`StorageError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StorageErrorKind {
    /// The same call may succeed later.
    Transient,
    /// There is no such object.
    NotFound,
    /// Credentials are missing, wrong, expired or not sufficient.
    Unauthorized,
    /// The URI or a property is wrong and stays so.
    Invalid,
    /// The object is not as long as it has to be.
    Corrupt,
}

/// Why a storage operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// There is no such object.
    #[error("storage: {uri} not found")]
    NotFound {
        /// The object asked for.
        uri: String,
    },
    /// The store does not accept who we are, or does not let us do this.
    #[error("storage: {doing} {uri}: not authorized; check the credentials and permissions")]
    Unauthorized {
        /// The object asked for.
        uri: String,
        /// What was to be done with it.
        doing: &'static str,
        /// The store's answer.
        #[source]
        source: Box<object_store::Error>,
    },
    /// Fewer, or more, bytes came than were asked for.
    #[error(
        "storage: {uri}: got {got} bytes from position {start} where {expected} were asked for"
    )]
    Length {
        /// The object read.
        uri: String,
        /// Position of the first byte asked for.
        start: u64,
        /// How many bytes were asked for.
        expected: u64,
        /// How many came.
        got: u64,
    },
    /// The URI cannot be one of a stored object.
    #[error("storage: location `{uri}` {message}")]
    Location {
        /// The URI.
        uri: String,
        /// What is wrong with it.
        message: String,
    },
    /// The URI leads out of where a table's files may be.
    #[error(
        "storage: {uri} is outside of {folder}, where the table's files are; if it is to be used all the same, name its folder in catalog.\"everlog.storage.allowed-locations\""
    )]
    Outside {
        /// The URI.
        uri: String,
        /// The folder that it should be in.
        folder: String,
    },
    /// A property is missing or wrong.
    #[error("[catalog] {key}: {message}")]
    Property {
        /// The property's name.
        key: String,
        /// What is wrong with it and what would be right.
        message: String,
    },
    /// Credentials could not be had from where they come from.
    #[error("storage: no new credentials")]
    Credentials {
        /// What went wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The data may not survive a power cut.
    #[error("storage: cannot sync {}", path.display())]
    Sync {
        /// File or folder.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: std::io::Error,
    },
    /// The store failed.
    #[error("storage: {doing} {uri} failed")]
    Store {
        /// The object asked for.
        uri: String,
        /// What was to be done with it.
        doing: &'static str,
        /// What went wrong.
        #[source]
        source: Box<object_store::Error>,
    },
}

impl StorageError {
    /// What the caller can do about it.
    pub fn kind(&self) -> StorageErrorKind {
        match self {
            Self::NotFound { .. } => StorageErrorKind::NotFound,
            Self::Unauthorized { .. } => StorageErrorKind::Unauthorized,
            Self::Length { .. } => StorageErrorKind::Corrupt,
            Self::Location { .. } | Self::Outside { .. } | Self::Property { .. } => {
                StorageErrorKind::Invalid
            }
            Self::Credentials { .. } | Self::Sync { .. } => StorageErrorKind::Transient,
            Self::Store { source, .. } => match **source {
                object_store::Error::InvalidPath { .. }
                | object_store::Error::NotSupported { .. }
                | object_store::Error::NotImplemented { .. }
                | object_store::Error::UnknownConfigurationKey { .. } => StorageErrorKind::Invalid,
                _ => StorageErrorKind::Transient,
            },
        }
    }

    pub(crate) fn from_store(uri: &str, doing: &'static str, source: object_store::Error) -> Self {
        use object_store::Error as Cause;
        let uri = uri.to_owned();
        let source = Box::new(source);
        match *source {
            Cause::NotFound { .. } => Self::NotFound { uri },
            Cause::PermissionDenied { .. } | Cause::Unauthenticated { .. } => {
                Self::Unauthorized { uri, doing, source }
            }
            _ => Self::Store { uri, doing, source },
        }
    }
}
