//! Attaching a program as a filter of the clsact qdisc.

use std::iter;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcHeader, TcMessage,
    TcOption,
};
use nix::errno::Errno;

use crate::attach::Remains;
use crate::netlink::{Netlink, NetlinkError};

/// Behind every filter that a plugin gave a number, like the kernel's own
/// choice for the first one without. All filters here are this crate's.
const PRIORITY: u32 = 0xc000;
/// Where frames arrive.
const INGRESS: TcHandle = TcHandle {
    major: u16::MAX,
    minor: TcHandle::MIN_INGRESS,
};
const CLSACT: &str = "clsact";

/// A filter on an interface. It stays until removed or until the interface
/// goes.
#[derive(Debug)]
pub(crate) struct Filter {
    index: u32,
    handle: u32,
}

impl Filter {
    /// Runs `program` where frames arrive at the interface `index`. `handle`
    /// is not 0 and tells this filter from others made here.
    ///
    /// A filter left behind by a process that was killed is replaced: it sends
    /// to an interface that is gone.
    pub(crate) fn attach(
        netlink: &mut Netlink,
        index: u32,
        handle: u32,
        program: BorrowedFd,
        name: &str,
    ) -> Result<Self, NetlinkError> {
        let added = netlink.execute(
            RouteNetlinkMessage::NewQueueDiscipline(qdisc(index)),
            NLM_F_CREATE | NLM_F_EXCL,
        );
        match added {
            Err(error) if error.errno() == Some(Errno::EEXIST) => {
                // Handle 0: all of this priority.
                Self { index, handle: 0 }.remove(netlink)?;
            }
            added => added?,
        }
        let options = [
            TcFilterBpfOption::ProgFd(program.as_raw_fd() as u32),
            TcFilterBpfOption::ProgName(name.to_owned()),
            TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
        ];
        let options = options.into_iter().map(TcOption::Bpf).collect();
        let this = Self { index, handle };
        netlink.execute(
            RouteNetlinkMessage::NewTrafficFilter(this.message(TcAttribute::Options(options))),
            NLM_F_CREATE | NLM_F_EXCL,
        )?;
        Ok(this)
    }

    /// The filter that an attachment left.
    pub(crate) fn of(remains: Remains) -> Self {
        Self {
            index: remains.interface,
            handle: remains.handle,
        }
    }

    /// What must be known to remove it later.
    pub(crate) fn remains(&self) -> Remains {
        Remains {
            interface: self.index,
            handle: self.handle,
        }
    }

    /// Removes the filter. One that is gone, or whose interface is, is no
    /// error. The qdisc stays, which costs nothing: others may have put
    /// filters of their own into it.
    pub(crate) fn remove(&self, netlink: &mut Netlink) -> Result<(), NetlinkError> {
        let message = RouteNetlinkMessage::DelTrafficFilter(self.message(None));
        match netlink.execute(message, 0) {
            Err(error) if matches!(error.errno(), Some(Errno::ENOENT | Errno::ENODEV)) => Ok(()),
            removed => removed,
        }
    }

    fn message(&self, options: impl Into<Option<TcAttribute>>) -> TcMessage {
        let header = TcHeader {
            index: self.index as i32,
            handle: self.handle.into(),
            parent: INGRESS,
            info: PRIORITY << 16 | u32::from((libc::ETH_P_ALL as u16).to_be()),
            ..TcHeader::default()
        };
        let kind = TcAttribute::Kind(TcFilterBpf::KIND.to_owned());
        let attributes = iter::once(kind).chain(options.into()).collect();
        TcMessage::from_parts(header, attributes)
    }
}

fn qdisc(index: u32) -> TcMessage {
    let header = TcHeader {
        index: index as i32,
        handle: TcHandle {
            major: u16::MAX,
            minor: 0,
        },
        parent: TcHandle::CLSACT,
        ..TcHeader::default()
    };
    TcMessage::from_parts(header, vec![TcAttribute::Kind(CLSACT.to_owned())])
}
