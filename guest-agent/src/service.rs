//! containerd's Task service: each request becomes one call of [`Tasks`].

use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::protobuf::{EnumOrUnknown, Message, MessageField};
use containerd_shim_protos::shim::oci::ProcessDetails;
use containerd_shim_protos::shim_async::Task;
use protocol::guest::CreateOptions;
use protocol::ids::CREATE_OPTIONS;
use runtime::TerminalSize;
use ttrpc::r#async::TtrpcContext;
use ttrpc::error::get_rpc_status;
use ttrpc::{Code, Error, Result};

use crate::metrics;
use crate::process::Exit;
use crate::stdio::{Stdio, StdioError};
use crate::storage::StorageError;
use crate::streams::StreamError;
use crate::tasks::{NewContainer, Status, TaskError, Tasks};
use crate::volumes::VolumeError;

/// Name of the statistics message among containerd's types.
const METRICS: &str = "io.containerd.cgroups.v2.Metrics";
/// Name of the message that says which exec a process id belongs to.
const PROCESS_DETAILS: &str = "containerd.runc.v1.ProcessDetails";

/// The service.
pub struct TaskService(pub Arc<Tasks>);

impl From<TaskError> for Error {
    fn from(error: TaskError) -> Self {
        let code = match &error {
            TaskError::NoContainer(_) | TaskError::NoProcess(..) | TaskError::Finished => {
                Code::NOT_FOUND
            }
            TaskError::Exists(_) => Code::ALREADY_EXISTS,
            TaskError::NotNow(_) => Code::FAILED_PRECONDITION,
            TaskError::InvalidId(_)
            | TaskError::Invalid(_)
            | TaskError::Spec(_)
            | TaskError::Stdio(StdioError::NotAnId(_))
            | TaskError::Volume(VolumeError::Invalid(_))
            | TaskError::Storage(StorageError::Invalid(_)) => Code::INVALID_ARGUMENT,
            TaskError::Stdio(StdioError::Stream(StreamError::InUse(_))) => Code::ALREADY_EXISTS,
            TaskError::Storage(StorageError::Full) => Code::RESOURCE_EXHAUSTED,
            // As containerd's own shim answers; a missing command must not look like a
            // missing container.
            TaskError::Engine(_)
            | TaskError::Stdio(_)
            | TaskError::Storage(_)
            | TaskError::Volume(_)
            | TaskError::System { .. } => Code::UNKNOWN,
        };
        get_rpc_status(code, error)
    }
}

fn timestamp(exit: Exit) -> MessageField<Timestamp> {
    MessageField::some(Timestamp {
        seconds: i64::try_from(exit.at_ns / 1_000_000_000).unwrap_or(i64::MAX),
        nanos: (exit.at_ns % 1_000_000_000) as i32,
        ..Default::default()
    })
}

fn any(type_url: &str, message: &impl Message) -> Result<MessageField<Any>> {
    let value = message
        .write_to_bytes()
        .map_err(|error| get_rpc_status(Code::INTERNAL, format!("encode {type_url}: {error}")))?;
    Ok(MessageField::some(Any {
        type_url: type_url.into(),
        value,
        ..Default::default()
    }))
}

fn create_options(options: Option<&Any>) -> Result<CreateOptions> {
    let invalid = |text: String| get_rpc_status(Code::INVALID_ARGUMENT, text);
    let any = options
        .filter(|any| any.type_url == CREATE_OPTIONS)
        .ok_or_else(|| {
            invalid(format!(
                "a create request needs options of type {CREATE_OPTIONS}"
            ))
        })?;
    CreateOptions::parse_from_bytes(&any.value)
        .map_err(|error| invalid(format!("{CREATE_OPTIONS}: {error}")))
}

#[async_trait]
impl Task for TaskService {
    async fn create(
        &self,
        _: &TtrpcContext,
        request: api::CreateTaskRequest,
    ) -> Result<api::CreateTaskResponse> {
        if !request.checkpoint.is_empty() {
            return Err(get_rpc_status(
                Code::UNIMPLEMENTED,
                "a container cannot be made from a checkpoint",
            ));
        }
        let options = create_options(request.options.as_ref())?;
        let pid = self.0.create(NewContainer {
            id: request.id,
            bundle: request.bundle,
            rootfs: request.rootfs,
            options,
            stdio: Stdio {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
            },
        })?;
        Ok(api::CreateTaskResponse {
            pid,
            ..Default::default()
        })
    }

    async fn start(
        &self,
        _: &TtrpcContext,
        request: api::StartRequest,
    ) -> Result<api::StartResponse> {
        let pid = self.0.start(&request.id, &request.exec_id).await?;
        Ok(api::StartResponse {
            pid,
            ..Default::default()
        })
    }

    async fn exec(&self, _: &TtrpcContext, request: api::ExecProcessRequest) -> Result<api::Empty> {
        let stdio = Stdio {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        self.0
            .exec(&request.id, &request.exec_id, &request.spec.value, stdio)?;
        Ok(api::Empty::default())
    }

    async fn delete(
        &self,
        _: &TtrpcContext,
        request: api::DeleteRequest,
    ) -> Result<api::DeleteResponse> {
        let (pid, exit) = self.0.delete(&request.id, &request.exec_id).await?;
        Ok(api::DeleteResponse {
            pid,
            exit_status: exit.status,
            exited_at: timestamp(exit),
            ..Default::default()
        })
    }

    async fn state(
        &self,
        _: &TtrpcContext,
        request: api::StateRequest,
    ) -> Result<api::StateResponse> {
        let state = self.0.state(&request.id, &request.exec_id)?;
        let status = match state.status {
            Status::Created => api::Status::CREATED,
            Status::Running => api::Status::RUNNING,
            Status::Paused => api::Status::PAUSED,
            Status::Stopped => api::Status::STOPPED,
        };
        Ok(api::StateResponse {
            id: request.id,
            exec_id: request.exec_id,
            bundle: state.bundle,
            pid: state.pid,
            status: EnumOrUnknown::new(status),
            stdin: state.stdio.stdin,
            stdout: state.stdio.stdout,
            stderr: state.stdio.stderr,
            terminal: state.stdio.terminal,
            exit_status: state.exit.map_or(0, |exit| exit.status),
            exited_at: state.exit.map_or_else(MessageField::none, timestamp),
            ..Default::default()
        })
    }

    async fn pids(&self, _: &TtrpcContext, request: api::PidsRequest) -> Result<api::PidsResponse> {
        let process = |(pid, exec_id): (u32, Option<String>)| {
            let info = match exec_id {
                None => MessageField::none(),
                Some(exec_id) => {
                    let details = ProcessDetails {
                        exec_id,
                        ..Default::default()
                    };
                    any(PROCESS_DETAILS, &details)?
                }
            };
            Ok(api::ProcessInfo {
                pid,
                info,
                ..Default::default()
            })
        };
        let processes = self
            .0
            .pids(&request.id)?
            .into_iter()
            .map(process)
            .collect::<Result<_>>()?;
        Ok(api::PidsResponse {
            processes,
            ..Default::default()
        })
    }

    async fn pause(&self, _: &TtrpcContext, request: api::PauseRequest) -> Result<api::Empty> {
        self.0.pause(&request.id)?;
        Ok(api::Empty::default())
    }

    async fn resume(&self, _: &TtrpcContext, request: api::ResumeRequest) -> Result<api::Empty> {
        self.0.resume(&request.id)?;
        Ok(api::Empty::default())
    }

    async fn checkpoint(
        &self,
        _: &TtrpcContext,
        _: api::CheckpointTaskRequest,
    ) -> Result<api::Empty> {
        Err(get_rpc_status(
            Code::UNIMPLEMENTED,
            "containers cannot be checkpointed",
        ))
    }

    async fn kill(&self, _: &TtrpcContext, request: api::KillRequest) -> Result<api::Empty> {
        self.0
            .kill(&request.id, &request.exec_id, request.signal, request.all)?;
        Ok(api::Empty::default())
    }

    async fn resize_pty(
        &self,
        _: &TtrpcContext,
        request: api::ResizePtyRequest,
    ) -> Result<api::Empty> {
        let cells = |count: u32| u16::try_from(count).unwrap_or(u16::MAX);
        let size = TerminalSize {
            columns: cells(request.width),
            rows: cells(request.height),
        };
        self.0.resize(&request.id, &request.exec_id, size)?;
        Ok(api::Empty::default())
    }

    async fn close_io(&self, _: &TtrpcContext, request: api::CloseIORequest) -> Result<api::Empty> {
        if request.stdin {
            self.0.close_stdin(&request.id, &request.exec_id)?;
        }
        Ok(api::Empty::default())
    }

    async fn update(
        &self,
        _: &TtrpcContext,
        request: api::UpdateTaskRequest,
    ) -> Result<api::Empty> {
        self.0.update(&request.id, &request.resources.value)?;
        Ok(api::Empty::default())
    }

    async fn wait(&self, _: &TtrpcContext, request: api::WaitRequest) -> Result<api::WaitResponse> {
        let exit = self.0.wait(&request.id, &request.exec_id).await?;
        Ok(api::WaitResponse {
            exit_status: exit.status,
            exited_at: timestamp(exit),
            ..Default::default()
        })
    }

    async fn stats(
        &self,
        _: &TtrpcContext,
        request: api::StatsRequest,
    ) -> Result<api::StatsResponse> {
        let stats = metrics::from_cgroup(self.0.stats(&request.id)?);
        Ok(api::StatsResponse {
            stats: any(METRICS, &stats)?,
            ..Default::default()
        })
    }

    async fn connect(
        &self,
        _: &TtrpcContext,
        request: api::ConnectRequest,
    ) -> Result<api::ConnectResponse> {
        let state = self.0.state(&request.id, "")?;
        Ok(api::ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: state.pid,
            version: env!("CARGO_PKG_VERSION").into(),
            ..Default::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: api::ShutdownRequest) -> Result<api::Empty> {
        self.0.power_off.notify_one();
        Ok(api::Empty::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(error: TaskError) -> Code {
        match Error::from(error) {
            Error::RpcStatus(status) => status.code(),
            other => panic!("{other} is no status"),
        }
    }

    #[test]
    fn errors_have_the_codes_that_containerd_acts_on() {
        assert_eq!(code(TaskError::NoContainer("a".into())), Code::NOT_FOUND);
        assert_eq!(code(TaskError::Finished), Code::NOT_FOUND);
        assert_eq!(code(TaskError::Exists("a".into())), Code::ALREADY_EXISTS);
        assert_eq!(
            code(TaskError::NotNow("a".into())),
            Code::FAILED_PRECONDITION
        );
        assert_eq!(
            code(TaskError::InvalidId("a/b".into())),
            Code::INVALID_ARGUMENT
        );
        assert_eq!(
            code(TaskError::Engine("no such file".into())),
            Code::UNKNOWN
        );
    }

    #[test]
    fn options_of_another_type_are_refused() {
        assert!(create_options(None).is_err());
        let mut options = Any::default();
        assert!(create_options(Some(&options)).is_err());
        options.type_url = CREATE_OPTIONS.into();
        assert!(create_options(Some(&options)).is_ok());
        options.value = vec![0xff];
        assert!(create_options(Some(&options)).is_err());
    }

    #[test]
    fn times_keep_their_nanoseconds() {
        let exit = Exit {
            status: 0,
            at_ns: 1_700_000_000_123_456_789,
        };
        let time = timestamp(exit);
        assert_eq!((time.seconds, time.nanos), (1_700_000_000, 123_456_789));
    }
}
