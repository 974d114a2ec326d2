//! `everlog schema`: what a topic's values say, whether all of them can be read, and how other engines read them.

mod check;
mod infer;
mod read;
mod view;

use std::sync::Arc;

use clap::{Args, Subcommand};
use everlog_decode::registry::{Registry, RegistryError};
use everlog_query::TopicValues;

use crate::failure::{Failure, Status};
use crate::settings::Settings;
use crate::{components, process};

/// Find out what a topic's values say, and whether all of them can be read
#[derive(Debug, Args)]
pub(crate) struct SchemaArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Infer(infer::InferArgs),
    Check(check::CheckArgs),
    View(view::ViewArgs),
}

/// Runs it.
pub(crate) async fn run(args: &SchemaArgs, settings: &Settings) -> Result<(), Failure> {
    match &args.what {
        What::Infer(args) => infer::run(args, settings).await,
        What::Check(args) => check::run(args, settings).await,
        What::View(args) => view::run(args, settings).await,
    }
}

/// What the configuration and its registry say of values.
pub(crate) fn values(settings: &Settings) -> Result<Arc<TopicValues>, Failure> {
    let registry = registry(settings)?;
    let declared = settings.decode.iter().cloned();
    Ok(Arc::new(TopicValues::new(declared, registry)))
}

/// The registry, if there is one; nothing is asked yet.
fn registry(settings: &Settings) -> Result<Option<Arc<Registry>>, Failure> {
    let Some(configured) = &settings.registry else {
        return Ok(None);
    };
    let revealed = configured
        .registry
        .settings(process::variable)
        .map_err(|error| Failure::from_error(Status::Usage, &error))?;
    let folder = match &configured.cache {
        Some(folder) => folder.clone(),
        None => process::cache().join("schemas"),
    };
    let (clock, ids) = (components::clock(), components::ids());
    Registry::open(&revealed, &folder, clock, ids)
        .map(|registry| Some(Arc::new(registry)))
        .map_err(|error| of_registry(&error))
}

/// A failure of the registry.
fn of_registry(error: &RegistryError) -> Failure {
    let status = match error {
        RegistryError::Address { .. } | RegistryError::Unauthorized { .. } => Status::Usage,
        _ => Status::Failed,
    };
    Failure::from_error(status, error)
}
