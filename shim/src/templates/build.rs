//! Makes a template: boots a VM that is nobody's, and saves it when its agent has answered.
//! Then it goes on as a sandbox would, to find out which pages one writes to at its start.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::recipe::Recipe;
use super::{CHANGES, LOCK, MANIFEST, MEMORY, Manifest, STATE, Seal, directory, find, remove};
use super::{TemplateError, remove_outdated};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::guest::{self, Guest};
use crate::host::lock::ByteLock;
use crate::pod::{self, Size};
use crate::vm::{Plan, Vm, shape};

/// Stands for containerd's namespace; no namespace begins with a dot.
const NAMESPACE: &str = ".template";
/// How often, and with which pauses, the guest is asked whether it has closed the
/// connection of the question.
const ASKED: u32 = 500;
const PAUSE: Duration = Duration::from_millis(10);

/// Makes this node's template unless it is there; returns its name, and whether it was
/// made now.
///
/// # Errors
/// Names what is missing or failed; nothing is left then.
pub async fn build(config: &Arc<Config>) -> Result<(String, bool)> {
    let path = lock_path(config)?;
    let lock = spawn_blocking(move || ByteLock::acquire(&path, 0))
        .await
        .map_err(Error::failed)?
        .map_err(|error| Error::Failed(format!("cannot lock the templates: {error}")))?;
    build_locked(config, lock).await
}

/// The same, unless somebody else is at it; what goes wrong is logged.
pub async fn build_in_background(config: Arc<Config>) {
    let made = match lock_path(&config).map(|path| ByteLock::try_acquire(&path, 0)) {
        Ok(Ok(Some(lock))) => build_locked(&config, lock).await,
        Ok(Ok(None)) => return,
        Ok(Err(error)) => Err(Error::Failed(format!("cannot lock the templates: {error}"))),
        Err(error) => Err(error),
    };
    match made {
        Ok((key, true)) => tracing::info!(key, "made a template: the next sandboxes start from it"),
        Ok((_, false)) => {}
        Err(error) => tracing::warn!(%error, "cannot make a template: sandboxes boot"),
    }
}

fn lock_path(config: &Config) -> Result<PathBuf> {
    let failed = |error| Error::Failed(format!("{}: {error}", config.state_dir.display()));
    fs::create_dir_all(&config.state_dir).map_err(failed)?;
    Ok(config.state_dir.join(LOCK))
}

async fn build_locked(config: &Arc<Config>, _lock: ByteLock) -> Result<(String, bool)> {
    let recipe = Recipe::of(config, &shape(config, 0)).map_err(|error| {
        Error::Failed(format!(
            "a template cannot be made without its parts: {error}"
        ))
    })?;
    let key = recipe.key();
    if let Ok(Some(_)) = find(&config.state_dir, &recipe) {
        return Ok((key, false));
    }
    // Files that are there may be mapped by VMs: they are replaced, never written to.
    remove(&config.state_dir, &key).map_err(|error| {
        Error::Failed(format!("cannot remove what is left of a template: {error}"))
    })?;
    for key in remove_outdated(&config.state_dir) {
        tracing::info!(key, "removed a template whose kernel, agent or VMM is gone");
    }
    let made = make(config, recipe, &key).await;
    if made.is_err()
        && let Err(error) = remove(&config.state_dir, &key)
    {
        tracing::warn!(key, %error, "removing an unfinished template");
    }
    made.map(|()| (key, true))
}

async fn make(config: &Arc<Config>, recipe: Recipe, key: &str) -> Result<()> {
    let place = directory(&config.state_dir, key);
    let failed = |what: &Path| {
        let what = what.display().to_string();
        move |error: std::io::Error| Error::Failed(format!("{what}: {error}"))
    };
    fs::create_dir_all(&place).map_err(failed(&place))?;
    let [memory, state, changes] = [MEMORY, STATE, CHANGES].map(|name| place.join(name));
    let create = |path: &Path| {
        let mut options = File::options();
        let options = options.read(true).write(true).create_new(true);
        options.open(path).map_err(failed(path))
    };
    let (memory_file, state_file) = (create(&memory)?, create(&state)?);
    let changes_file = create(&changes)?;
    let bytes = u64::from(recipe.spec().memory_mib) << 20;
    memory_file.set_len(bytes).map_err(failed(&memory))?;

    let name: String = key.chars().take(12).collect();
    let plan = Plan {
        id: format!("template-{name}"),
        namespace: NAMESPACE.into(),
        bundle: None,
        netns: None,
        cgroups_path: format!("/joey-template-{name}").into(),
        pod: Default::default(),
        socket: PathBuf::new(),
        size: Size::of_template(config),
        templates: false,
        config: config.clone(),
    };
    let (vm, _events) = Vm::start(&plan, &Arc::default()).await?;
    let saved = async {
        settle(&vm).await?;
        let saved = memory_file.try_clone().map_err(failed(&memory))?;
        vm.save(memory_file, state_file).await?;
        rehearse(&vm).await?;
        vm.changes(saved, changes_file).await
    };
    let saved = saved.await;
    vm.release().await;
    saved?;

    let place = place.clone();
    let sealed = spawn_blocking(move || -> std::result::Result<(), TemplateError> {
        let seal =
            |path: &Path| Seal::of(path).map_err(|error| TemplateError::Io(path.to_owned(), error));
        let manifest = Manifest {
            recipe,
            memory: seal(&memory)?,
            state: seal(&state)?,
            changes: seal(&changes)?,
        };
        let text = serde_json::to_vec(&manifest).expect("a manifest is plain data");
        let (partial, whole) = (place.join("manifest.partial"), place.join(MANIFEST));
        fs::write(&partial, text)
            .and_then(|()| fs::rename(&partial, &whole))
            .map_err(|error| TemplateError::Io(whole, error))
    });
    sealed.await.map_err(Error::failed)?.map_err(Error::failed)
}

/// Has the guest start as a sandbox's would.
async fn rehearse(vm: &Arc<Vm>) -> Result<()> {
    let guest = Guest::connect(vm.vsock().clone())
        .await
        .map_err(Error::failed)?;
    let message = pod::rehearsal();
    guest.guest.configure(guest::question(), &message).await?;
    // What the agent does after its answer is over before that.
    drop(guest);
    closed(vm).await
}

/// Waits until the agent has answered and is idle.
async fn settle(vm: &Arc<Vm>) -> Result<()> {
    let guest = Guest::connect(vm.vsock().clone())
        .await
        .map_err(Error::failed)?;
    guest
        .guest
        .stats(guest::question(), &Default::default())
        .await?;
    drop(guest);
    closed(vm).await
}

/// Waits until the agent has closed all connections.
async fn closed(vm: &Arc<Vm>) -> Result<()> {
    for _ in 0..ASKED {
        if vm.stats().await?.vsock.open == 0 {
            return Ok(());
        }
        sleep(PAUSE).await;
    }
    Err(Error::Failed(
        "the agent does not close a connection".into(),
    ))
}
