//! A VM that stands still without a process: its memory and state are in files without
//! names, and what it runs on is kept here, where connections into the guest wait too. It
//! goes on in another VMM, once.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vmm::{ClientError, RestoreFiles, Vmm};

use super::events::watch;
use super::preparation::{shape, spawn_in};
use super::start::name_vmm;
use super::{Backing, Parts, Process, Saved, Vm, lock, set_oom_score};
use crate::error::{Error, Result, chain};
use crate::host::{files, scratch};

impl Vm {
    /// Whether it hibernates.
    pub fn hibernates(&self) -> bool {
        lock(&self.dormant).is_some()
    }

    /// Writes a VM that is paused to disk and ends its VMM, which gives its memory back to
    /// the host.
    ///
    /// # Errors
    /// When it cannot be saved, as without room on the disk: it goes on to be paused then. Or
    /// its VMM is lost, and with it the pod.
    pub async fn hibernate(self: &Arc<Self>) -> Result<()> {
        let vm = self.clone();
        self.with_parts(move |parts| vm.save_and_leave(parts)).await
    }

    fn save_and_leave(&self, parts: &mut Parts) -> Result<()> {
        let config = &self.config;
        let refused = |reason: String| Error::State(format!("cannot save the VM: {reason}"));
        if config.console {
            return Err(refused("its console is on".into()));
        }
        let directory = &config.data_dir;
        if scratch::is_in_memory(directory) {
            return Err(refused(format!(
                "{} is in memory, of which nothing would be saved: put data_dir on a disk",
                directory.display()
            )));
        }
        let Some(vmm) = &mut parts.vmm else {
            return Err(refused("it hibernates already".into()));
        };
        let events = self.events.upgrade().ok_or_else(|| self.gone())?;
        let file = || {
            files::unnamed(directory)
                .map_err(|error| refused(format!("{}: {error}", directory.display())))
        };
        let (memory, state) = (file()?, file()?);
        // What is not plugged stays a hole.
        let most = (u64::from(config.memory_mib) + u64::from(config.hotplug_mib())) << 20;
        memory
            .set_len(most)
            .map_err(|error| refused(format!("{}: {error}", directory.display())))?;
        let connections = match vmm.leave(memory.as_fd(), state.as_fd()) {
            Ok(connections) => connections,
            Err(ClientError::Refused(reason)) => return Err(refused(reason)),
            Err(error) => {
                // Where it stands now is not known.
                if let Some(process) = self.process() {
                    process.kill();
                }
                return Err(Error::failed(error).context("the VM is lost while it is saved"));
            }
        };
        parts.saved = Some(Saved {
            memory,
            state,
            connections,
        });
        *lock(&self.dormant) = Some(events);
        // It is not moved to another cgroup while it is reaped.
        let stray = lock(&self.stray);
        *lock(&self.process) = None;
        // Kills it and waits for its end.
        parts.vmm = None;
        drop(stray);
        self.end_if_killed();
        Ok(())
    }

    /// Lets a VM that hibernates go on, in another VMM.
    ///
    /// # Errors
    /// When there can be none: it hibernates still, and may be asked again. Or it does not
    /// run: then the pod is lost.
    pub async fn wake(self: &Arc<Self>) -> Result<()> {
        let vm = self.clone();
        self.with_parts(move |parts| vm.restore_and_run(parts))
            .await
    }

    fn restore_and_run(&self, parts: &mut Parts) -> Result<()> {
        let (Some(saved), Some(backing)) = (&parts.saved, &parts.backing) else {
            return Err(Error::State("the VM does not hibernate".into()));
        };
        let Some(events) = lock(&self.dormant).take() else {
            return Err(self.gone());
        };
        let restored = self.restore_vmm(saved, backing);
        let (mut vmm, process) = match restored {
            Ok(restored) => restored,
            Err(error) => {
                *lock(&self.dormant) = Some(events);
                self.end_if_killed();
                return Err(error.context("cannot restore the VM, which is kept"));
            }
        };
        name_vmm(&mut parts.record, &vmm);
        if let Err(error) = parts.state.write_record(&parts.record) {
            tracing::warn!(sandbox = self.id, %error, "the sandbox's record has an old VMM");
        }
        set_oom_score(vmm.pid(), self.oom_score.load(Ordering::Acquire));
        let process = Arc::new(process);
        *lock(&self.process) = Some(process.clone());
        if self.killed.load(Ordering::SeqCst) {
            process.kill();
        }
        // From here on what was saved is the past, of which there is no second.
        let ran = backing.run(&mut vmm).and_then(|()| {
            let stream = vmm.events();
            let stream = stream
                .map_err(|error| Error::Failed(format!("the VMM's event socket: {error}")))?;
            watch(stream, events)
        });
        parts.saved = None;
        if ran.is_err() {
            process.kill();
        }
        parts.vmm = Some(vmm);
        ran.map_err(|error| error.context("the VM is lost while it is restored"))
    }

    /// A VMM with the VM, which has not run yet.
    fn restore_vmm(&self, saved: &Saved, backing: &Backing) -> Result<(Vmm, Process)> {
        let config = &self.config;
        let kvm = files::kvm().map_err(Error::failed)?;
        let kernel = files::kernel(&config.kernel).map_err(Error::failed)?;
        let (mut vmm, log, uid) = spawn_in(config, &self.id, &self.cgroup.vmm_dir())?;
        let process = Process::of(&vmm, log)?;
        let files = RestoreFiles {
            kvm: kvm.as_fd(),
            kernel: kernel.as_fd(),
            memory: saved.memory.as_fd(),
            state: saved.state.as_fd(),
            changes: None,
        };
        let restored = vmm
            .restore(&shape(config, uid), files, false)
            .and_then(|()| vmm.take_over(&saved.connections))
            .and_then(|()| backing.attach(&mut vmm));
        match restored {
            Ok(()) => Ok((vmm, process)),
            Err(error) => Err(Error::Failed(chain(&error))),
        }
    }

    /// Ends a VM that hibernates and was killed meanwhile.
    fn end_if_killed(&self) {
        if self.killed.load(Ordering::SeqCst) {
            drop(lock(&self.dormant).take());
        }
    }
}
