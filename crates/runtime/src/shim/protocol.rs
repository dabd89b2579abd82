//! What the server and a pod's shim say to each other: JSON frames, each preceded by its length, with file
//! descriptors riding along.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::{Deserialize, Serialize};

use crate::userns::Ids;

/// Longest frame that is accepted, in bytes: an exec's environment and arguments fit in it many times over.
pub const MAX_FRAME: usize = 16 << 20;

/// Asks the zygote for a shim. The shim's end of its first connection, and its log, come with it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Spawn {
    pub sandbox_id: String,
}

/// The sandbox that a shim holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Init {
    pub sandbox_id: String,
    /// Where the socket is bound, as `shim.sock`.
    pub state_dir: PathBuf,
    /// Namespaces of the pod; those that are the host's are left alone.
    pub new_network: bool,
    pub new_ipc: bool,
    pub new_uts: bool,
    /// The pod's users and groups, when it has them to itself: the namespaces above are then theirs.
    pub users: Option<Ids>,
    /// All of the pod's containers share one process namespace, and so a first process is needed in it.
    pub shared_pid: bool,
    pub hostname: String,
    pub sysctls: BTreeMap<String, String>,
}

/// A container that is to be started from its bundle.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Start {
    pub id: String,
    pub bundle: PathBuf,
    /// libcontainer's own record of the container is kept below this.
    pub runtime_root: PathBuf,
    /// Where the exit is recorded.
    pub exit_file: PathBuf,
    pub log_path: Option<PathBuf>,
    pub tty: bool,
    pub stdin: bool,
    /// Which user of the host's the first process is: it may open its own streams again.
    pub user: Option<u32>,
    /// Files whose `oom_kill` counter says whether the kernel killed for want of memory.
    pub oom_files: Vec<PathBuf>,
    /// The cgroup whose processes are killed along with the first one, when they do not share its process
    /// namespace.
    pub kill_cgroup: Option<PathBuf>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Exec {
    pub container: String,
    pub bundle: PathBuf,
    /// The process in the OCI form.
    pub process: serde_json::Value,
    /// Which user of the host's that is: it may open its own streams again.
    pub user: Option<u32>,
    /// Directories of the container's control groups.
    pub cgroups: Vec<PathBuf>,
    /// With a terminal the reply carries its master; else three descriptors come with the request.
    pub tty: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    Init(Init),
    Start(Start),
    Exec(Exec),
    /// A signal for a container's first process.
    Signal {
        id: String,
        signal: i32,
        /// For the processes beside it too.
        all: bool,
    },
    /// A signal for a process that was started by `Exec`.
    SignalExec {
        pid: i32,
        signal: i32,
    },
    /// Two descriptors come with it, for output and errors; what writes to the container's input comes back.
    Attach {
        id: String,
    },
    CloseStdin {
        id: String,
    },
    ReopenLog {
        id: String,
    },
    /// Everything known of containers, then each change as it happens.
    Subscribe,
    /// An exited container is forgotten.
    Forget {
        id: String,
    },
    /// Everything is killed; the shim ends.
    Shutdown,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// As a shell would say it: 128 and the signal's number when it was killed.
    pub code: i32,
    pub oom_killed: bool,
    /// Nanoseconds since 1970.
    pub at: i64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerRecord {
    pub id: String,
    pub pid: i32,
    pub exit: Option<Exit>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Reply {
    Ok,
    Error(String),
    /// The sandbox stands: the shim's process, and the first process of a shared process namespace. The namespace of the
    /// pod's users comes with it, if they are not the host's.
    Ready {
        pid: i32,
        pause: Option<i32>,
    },
    Started {
        pid: i32,
    },
    ExecStarted {
        pid: i32,
    },
    ExecExited {
        code: i32,
    },
    Attached {
        stdin: bool,
        tty: bool,
    },
    /// As `Ready`, and with what is known of the containers.
    Containers {
        pid: i32,
        pause: Option<i32>,
        containers: Vec<ContainerRecord>,
    },
    Exited {
        id: String,
        exit: Exit,
    },
}

/// A frame as it goes over the wire.
pub fn encode<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message)?;
    let length = u32::try_from(frame.len() - 4).map_err(io::Error::other)?;
    frame[..4].copy_from_slice(&length.to_le_bytes());
    Ok(frame)
}

/// Bytes and descriptors that have come in and do not make a whole frame yet.
#[derive(Debug, Default)]
pub struct Incoming {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Incoming {
    /// Reads once. `Ok(0)` is the end.
    pub fn fill(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let mut chunk = [0u8; 8192];
        let mut space = nix::cmsg_space!([RawFd; 4]);
        let mut parts = [IoSliceMut::new(&mut chunk)];
        let message =
            recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = control {
                self.fds.extend(fds.into_iter().map(owned));
            }
        }
        let read = message.bytes;
        self.bytes.extend_from_slice(&chunk[..read]);
        Ok(read)
    }

    /// The descriptors that have come so far, whatever the bytes say.
    pub fn take_fds(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.fds)
    }

    /// The next whole frame, with the descriptors that came before its end.
    pub fn next<T: serde::de::DeserializeOwned>(&mut self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let Some(head) = self.bytes.first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*head) as usize;
        if length > MAX_FRAME {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "frame too long"));
        }
        let Some(body) = self.bytes.get(4..4 + length) else { return Ok(None) };
        let message = serde_json::from_slice(body)?;
        self.bytes.drain(..4 + length);
        if self.bytes.is_empty() {
            self.bytes.shrink_to(0);
        }
        Ok(Some((message, std::mem::take(&mut self.fds))))
    }
}

/// Sends as much of `bytes` as goes at once; `fds` ride on the first byte.
pub fn send_some(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    let sent =
        sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(sent)
}

/// Sends a whole frame on a blocking socket.
pub fn send<T: Serialize>(socket: BorrowedFd<'_>, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let frame = encode(message)?;
    let mut sent = 0;
    while sent < frame.len() {
        let riders = if sent == 0 { fds } else { &[] };
        match send_some(socket, &frame[sent..], riders) {
            Ok(n) => sent += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[allow(unsafe_code)]
fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just put this descriptor into our table for us; nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_frame_arrives_whole_with_its_descriptors() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        send(ours.as_fd(), &Request::Attach { id: "a".repeat(20_000) }, &[writer.as_fd()]).unwrap();
        drop(writer);
        let mut incoming = Incoming::default();
        let (request, fds) = loop {
            if let Some(whole) = incoming.next::<Request>().unwrap() {
                break whole;
            }
            assert_ne!(incoming.fill(theirs.as_fd()).unwrap(), 0);
        };
        let Request::Attach { id } = request else { panic!("another request came out") };
        assert_eq!(id.len(), 20_000);
        assert_eq!(fds.len(), 1);
        let mut end = std::fs::File::from(fds.into_iter().next().unwrap());
        end.write_all(b"through").unwrap();
        drop(end);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
    }

    /// Shims outlive the binary that they are of. What is written here is never changed: a new message may be added, and
    /// a new field only such that it may be missing.
    #[test]
    fn what_earlier_ones_say_is_understood() {
        for said in [
            r#"{"Init":{"sandbox_id":"s","state_dir":"/d","new_network":true,"new_ipc":true,"new_uts":true,
                "users":null,"shared_pid":false,"hostname":"h","sysctls":{"a":"1"}}}"#,
            r#"{"Start":{"id":"c","bundle":"/b","runtime_root":"/r","exit_file":"/e","log_path":"/l","tty":false,
                "stdin":false,"user":1000,"oom_files":["/o"],"kill_cgroup":"/k"}}"#,
            r#"{"Exec":{"container":"c","bundle":"/b","process":{},"user":null,"cgroups":["/g"],"tty":true}}"#,
            r#"{"Signal":{"id":"c","signal":15,"all":false}}"#,
            r#"{"SignalExec":{"pid":7,"signal":9}}"#,
            r#"{"Attach":{"id":"c"}}"#,
            r#"{"CloseStdin":{"id":"c"}}"#,
            r#"{"ReopenLog":{"id":"c"}}"#,
            r#""Subscribe""#,
            r#"{"Forget":{"id":"c"}}"#,
            r#""Shutdown""#,
        ] {
            serde_json::from_str::<Request>(said).unwrap_or_else(|error| panic!("{said}: {error}"));
        }
        for said in [
            r#""Ok""#,
            r#"{"Error":"no"}"#,
            r#"{"Ready":{"pid":1,"pause":null}}"#,
            r#"{"Started":{"pid":1}}"#,
            r#"{"ExecStarted":{"pid":1}}"#,
            r#"{"ExecExited":{"code":0}}"#,
            r#"{"Attached":{"stdin":false,"tty":false}}"#,
            r#"{"Containers":{"pid":1,"pause":2,"containers":[{"id":"c","pid":3,
                "exit":{"code":0,"oom_killed":false,"at":1}}]}}"#,
            r#"{"Exited":{"id":"c","exit":{"code":137,"oom_killed":true,"at":1}}}"#,
        ] {
            serde_json::from_str::<Reply>(said).unwrap_or_else(|error| panic!("{said}: {error}"));
        }
    }

    #[test]
    fn an_endless_frame_is_refused() {
        let mut incoming = Incoming { bytes: u32::MAX.to_le_bytes().to_vec(), fds: Vec::new() };
        assert!(incoming.next::<Request>().is_err());
    }
}
