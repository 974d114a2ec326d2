//! One client per bucket, made from Iceberg's property names.

use std::collections::BTreeMap;
use std::sync::Arc;

use object_store::ObjectStore;
#[cfg(any(feature = "s3", feature = "gcs", feature = "azure"))]
use object_store::{BackoffConfig, ClientOptions, RetryConfig};

use super::StorageError;
use super::credentials::Vended;
use super::durable::DurableFiles;
use super::location::{Location, Scheme};
use super::settings::StorageSettings;

/// What a client is made for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ClientKey {
    scheme: Scheme,
    authority: String,
}

impl ClientKey {
    pub(super) fn of(location: &Location) -> Self {
        Self {
            scheme: location.scheme,
            authority: location.authority.clone(),
        }
    }
}

type Properties = BTreeMap<String, String>;
type Credentials<'a> = Option<&'a Vended>;

/// Makes the client of one bucket. No request is sent.
pub(super) fn build(
    key: &ClientKey,
    properties: &Properties,
    credentials: Credentials<'_>,
    settings: &StorageSettings,
) -> Result<Arc<dyn ObjectStore>, StorageError> {
    match key.scheme {
        Scheme::File | Scheme::Any => Ok(Arc::new(DurableFiles::new())),
        #[cfg(feature = "s3")]
        Scheme::S3 => s3(&key.authority, properties, credentials, settings),
        #[cfg(feature = "gcs")]
        Scheme::Gcs => gcs(&key.authority, properties, credentials, settings),
        #[cfg(feature = "azure")]
        Scheme::Azure => azure(&key.authority, properties, credentials, settings),
        #[cfg(not(all(feature = "s3", feature = "gcs", feature = "azure")))]
        _ => {
            let _ = (properties, credentials, settings);
            Err(StorageError::Location {
                uri: key.authority.clone(),
                message: format!(
                    "needs {:?} support, which this build leaves out",
                    key.scheme
                ),
            })
        }
    }
}

#[cfg(any(feature = "s3", feature = "gcs", feature = "azure"))]
fn client_options(settings: &StorageSettings, plain_http: bool) -> ClientOptions {
    ClientOptions::new()
        .with_connect_timeout(settings.connect_timeout)
        .with_timeout(settings.request_timeout)
        .with_allow_http(plain_http)
}

#[cfg(any(feature = "s3", feature = "gcs", feature = "azure"))]
fn retry(settings: &StorageSettings) -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig::default(),
        max_retries: settings.max_retries,
        retry_timeout: settings.retry_timeout,
    }
}

/// A property that is set and not empty.
#[cfg(any(feature = "s3", feature = "gcs", feature = "azure"))]
fn given<'a>(properties: &'a Properties, key: &str) -> Option<&'a str> {
    properties
        .get(key)
        .map(String::as_str)
        .filter(|value| !value.is_empty())
}

#[cfg(any(feature = "s3", feature = "gcs", feature = "azure"))]
fn flag(properties: &Properties, key: &str) -> Result<Option<bool>, StorageError> {
    match given(properties, key) {
        None => Ok(None),
        Some(value) if value.eq_ignore_ascii_case("true") => Ok(Some(true)),
        Some(value) if value.eq_ignore_ascii_case("false") => Ok(Some(false)),
        Some(value) => Err(refused(key, format!("`{value}` is neither true nor false"))),
    }
}

#[cfg(any(feature = "s3", feature = "gcs", feature = "azure"))]
fn refused(key: &str, message: String) -> StorageError {
    StorageError::Property {
        key: key.to_owned(),
        message,
    }
}

#[cfg(any(feature = "s3", feature = "gcs", feature = "azure"))]
fn unusable(prefix: &str, source: &object_store::Error) -> StorageError {
    refused(prefix, format!("cannot make a client: {source}"))
}

#[cfg(feature = "s3")]
fn s3(
    bucket: &str,
    properties: &Properties,
    credentials: Credentials<'_>,
    settings: &StorageSettings,
) -> Result<Arc<dyn ObjectStore>, StorageError> {
    use object_store::aws::AmazonS3Builder;

    let endpoint = given(properties, "s3.endpoint");
    let keys = s3_keys(properties)?;
    if keys.is_none() && flag(properties, "s3.remote-signing-enabled")? == Some(true) {
        let message = "remote signing is not supported; let the catalog vend credentials, or set \
                       s3.access-key-id and s3.secret-access-key";
        return Err(refused("s3.remote-signing-enabled", message.into()));
    }
    // The environment is asked only where no keys are given: a stray AWS_SESSION_TOKEN must not be mixed with them.
    let mut builder = match (&keys, credentials) {
        (None, None) => AmazonS3Builder::from_env(),
        _ => AmazonS3Builder::new(),
    };
    let plain_http = endpoint.is_some_and(|endpoint| endpoint.starts_with("http://"));
    builder = builder
        .with_bucket_name(bucket)
        .with_retry(retry(settings))
        .with_client_options(client_options(settings, plain_http));
    if let Some(region) = given(properties, "s3.region").or(given(properties, "client.region")) {
        builder = builder.with_region(region);
    }
    if flag(properties, "s3.anonymous")? == Some(true) {
        builder = builder.with_skip_signature(true);
    }
    let path_style = flag(properties, "s3.path-style-access")?.unwrap_or(endpoint.is_some());
    builder = builder.with_virtual_hosted_style_request(!path_style);
    if let Some(endpoint) = endpoint {
        builder = builder.with_endpoint(s3_endpoint(endpoint, bucket, path_style)?);
    }
    builder = match (keys, credentials) {
        (keys, Some(source)) => builder.with_credentials(Arc::new(
            super::credentials::Refreshing::new(keys, source, properties, s3_keys),
        )),
        (Some(keys), None) => {
            builder.with_credentials(Arc::new(object_store::StaticCredentialProvider::new(keys)))
        }
        (None, None) => builder,
    };
    builder = match given(properties, "s3.sse.type") {
        None | Some("none" | "s3") => builder,
        Some("kms") => match given(properties, "s3.sse.key") {
            Some(key) => builder.with_sse_kms_encryption(key),
            None => {
                return Err(refused(
                    "s3.sse.key",
                    "missing, though s3.sse.type is kms".into(),
                ));
            }
        },
        Some(other) => {
            let message = format!("`{other}` is not supported, give none, s3 or kms");
            return Err(refused("s3.sse.type", message));
        }
    };
    let client = builder.build().map_err(|error| unusable("s3", &error))?;
    Ok(Arc::new(client))
}

#[cfg(feature = "s3")]
fn s3_keys(
    properties: &Properties,
) -> Result<Option<object_store::aws::AwsCredential>, StorageError> {
    let id = given(properties, "s3.access-key-id");
    let secret = given(properties, "s3.secret-access-key");
    match (id, secret) {
        (None, None) => Ok(None),
        (Some(id), Some(secret)) => Ok(Some(object_store::aws::AwsCredential {
            key_id: id.to_owned(),
            secret_key: secret.to_owned(),
            token: given(properties, "s3.session-token").map(str::to_owned),
        })),
        (Some(_), None) => Err(refused(
            "s3.secret-access-key",
            "missing, though s3.access-key-id is set".into(),
        )),
        (None, Some(_)) => Err(refused(
            "s3.access-key-id",
            "missing, though s3.secret-access-key is set".into(),
        )),
    }
}

/// The client wants the bucket in the host where requests are not path-style.
#[cfg(feature = "s3")]
fn s3_endpoint(endpoint: &str, bucket: &str, path_style: bool) -> Result<String, StorageError> {
    let endpoint = endpoint.trim_end_matches('/');
    let Some((scheme, host)) = endpoint.split_once("://") else {
        let message = format!("`{endpoint}` is no URL, write it like https://s3.example.com");
        return Err(refused("s3.endpoint", message));
    };
    if path_style {
        return Ok(endpoint.to_owned());
    }
    Ok(format!("{scheme}://{bucket}.{host}"))
}

#[cfg(feature = "gcs")]
fn gcs(
    bucket: &str,
    properties: &Properties,
    credentials: Credentials<'_>,
    settings: &StorageSettings,
) -> Result<Arc<dyn ObjectStore>, StorageError> {
    use object_store::gcp::GoogleCloudStorageBuilder;

    let host = given(properties, "gcs.service.host");
    let token = gcs_token(properties)?;
    let account = given(properties, "gcs.service-account-path");
    let mut builder = match (&token, account, credentials) {
        (None, None, None) => GoogleCloudStorageBuilder::from_env(),
        _ => GoogleCloudStorageBuilder::new(),
    };
    // The client's metadata server (instance credentials) is plain HTTP.
    let plain_http = host.is_none_or(|host| host.starts_with("http://"));
    builder = builder
        .with_bucket_name(bucket)
        .with_retry(retry(settings))
        .with_client_options(client_options(settings, plain_http));
    if let Some(host) = host {
        builder = builder.with_base_url(host);
    }
    if let Some(path) = account {
        builder = builder.with_service_account_path(path);
    }
    let is_open = flag(properties, "gcs.no-auth")? == Some(true);
    builder = match (token, credentials) {
        // The client leaves credentials out where it reads; where it writes it asks for a token all the same.
        _ if is_open => {
            let bearer = String::new();
            builder.with_skip_signature(true).with_credentials(Arc::new(
                object_store::StaticCredentialProvider::new(object_store::gcp::GcpCredential {
                    bearer,
                }),
            ))
        }
        (token, Some(source)) => builder.with_credentials(Arc::new(
            super::credentials::Refreshing::new(token, source, properties, gcs_token),
        )),
        (Some(token), None) => {
            builder.with_credentials(Arc::new(object_store::StaticCredentialProvider::new(token)))
        }
        (None, None) => builder,
    };
    let client = builder.build().map_err(|error| unusable("gcs", &error))?;
    Ok(Arc::new(client))
}

#[cfg(feature = "gcs")]
#[expect(clippy::unnecessary_wraps, reason = "one signature for every store")]
fn gcs_token(
    properties: &Properties,
) -> Result<Option<object_store::gcp::GcpCredential>, StorageError> {
    Ok(
        given(properties, "gcs.oauth2.token").map(|token| object_store::gcp::GcpCredential {
            bearer: token.to_owned(),
        }),
    )
}

#[cfg(feature = "azure")]
fn azure(
    authority: &str,
    properties: &Properties,
    credentials: Credentials<'_>,
    settings: &StorageSettings,
) -> Result<Arc<dyn ObjectStore>, StorageError> {
    use object_store::azure::MicrosoftAzureBuilder;

    // container@account.dfs.core.windows.net, or the container alone with adls.account-name
    let (container, host) = match authority.split_once('@') {
        Some((container, host)) => (container, Some(host)),
        None => (authority, None),
    };
    let from_host = host
        .and_then(|host| host.split('.').next())
        .map(str::to_owned);
    let account = from_host
        .or_else(|| given(properties, "adls.account-name").map(str::to_owned))
        .ok_or_else(|| {
            refused(
                "adls.account-name",
                "missing, and the location names no account".into(),
            )
        })?;

    let token = azure_sas(&account, properties)?;
    let key = given(properties, "adls.account-key");
    let client_id = given(properties, "adls.client-id");
    let mut builder = match (&token, key, client_id, credentials) {
        (None, None, None, None) => MicrosoftAzureBuilder::from_env(),
        _ => MicrosoftAzureBuilder::new(),
    };
    builder = builder
        .with_account(&account)
        .with_container_name(container)
        .with_retry(retry(settings))
        .with_client_options(client_options(settings, false));
    if let Some(key) = key {
        builder = builder.with_access_key(key);
    }
    if let Some(id) = client_id {
        builder = builder.with_client_id(id);
    }
    if let Some(secret) = given(properties, "adls.client-secret") {
        builder = builder.with_client_secret(secret);
    }
    if let Some(tenant) = given(properties, "adls.tenant-id") {
        builder = builder.with_tenant_id(tenant);
    }
    let owned = account.clone();
    builder = match (token, credentials) {
        (token, Some(source)) => {
            builder.with_credentials(Arc::new(super::credentials::Refreshing::new(
                token,
                source,
                properties,
                move |properties: &Properties| azure_sas(&owned, properties),
            )))
        }
        (Some(token), None) => {
            builder.with_credentials(Arc::new(object_store::StaticCredentialProvider::new(token)))
        }
        (None, None) => builder,
    };
    let client = builder.build().map_err(|error| unusable("adls", &error))?;
    Ok(Arc::new(client))
}

/// A shared access signature: for this account's host, for this account, or for all.
#[cfg(feature = "azure")]
fn azure_sas(
    account: &str,
    properties: &Properties,
) -> Result<Option<object_store::azure::AzureCredential>, StorageError> {
    let hosts =
        ["dfs", "blob"].map(|kind| format!("adls.sas-token.{account}.{kind}.core.windows.net"));
    let mut names = hosts
        .into_iter()
        .chain([format!("adls.sas-token.{account}"), "adls.sas-token".into()]);
    let Some((name, token)) =
        names.find_map(|name| given(properties, &name).map(|token| (name.clone(), token)))
    else {
        return Ok(None);
    };
    let pairs: Vec<(String, String)> =
        url::form_urlencoded::parse(token.trim_start_matches('?').as_bytes())
            .into_owned()
            .collect();
    if pairs.iter().any(|(key, _)| key == "sig") {
        return Ok(Some(object_store::azure::AzureCredential::SASToken(pairs)));
    }
    Err(refused(
        &name,
        "is no shared access signature (it has no `sig`)".into(),
    ))
}
