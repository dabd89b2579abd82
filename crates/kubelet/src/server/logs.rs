//! A container's log over HTTP, as it is or as it grows.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::mpsc;

use super::route::Query;
use super::{Answer, Server, flowing, text};
use crate::logs::read::{Options, Reader, Shower};
use crate::observed::Observed;

/// Bytes that are sent at once.
const CHUNK: usize = 32 << 10;
/// How often a log that is followed is looked at: nobody tells when a file has grown.
const LOOK: Duration = Duration::from_millis(100);

fn options(query: &Query) -> Result<Options, String> {
    let number = |name: &str| match query.get(name) {
        None | Some("") => Ok(None),
        Some(value) => value.parse::<i64>().map(Some).map_err(|_| format!("invalid {name}: {value:?}")),
    };
    let since = match (number("sinceSeconds")?, query.get("sinceTime").filter(|t| !t.is_empty())) {
        (Some(seconds), _) => Some(Timestamp::now() - SignedDuration::from_secs(seconds)),
        (None, Some(time)) => Some(time.parse().map_err(|_| format!("invalid sinceTime: {time:?}"))?),
        (None, None) => None,
    };
    Ok(Options {
        follow: query.flag("follow"),
        timestamps: query.flag("timestamps"),
        tail: number("tailLines")?.map(|n| usize::try_from(n).unwrap_or(0)),
        limit: number("limitBytes")?.map(|n| usize::try_from(n).unwrap_or(0)),
        since,
        stream: match query.get("stream") {
            Some("Stdout") => Some("stdout"),
            Some("Stderr") => Some("stderr"),
            _ => None,
        },
    })
}

pub async fn answer(
    server: &Arc<Server>,
    namespace: &str,
    name: &str,
    container: &str,
    query: &Query,
) -> Answer {
    let options = match options(query) {
        Ok(options) => options,
        Err(error) => return text(StatusCode::BAD_REQUEST, error),
    };
    let pod = match server.pod(namespace, name) {
        Ok(pod) => pod,
        Err(answer) => return *answer,
    };
    let spec = pod.spec.as_ref();
    let is_known = spec.is_some_and(|s| crate::spec::find(s, container).is_some());
    if !is_known {
        return text(StatusCode::NOT_FOUND, format!("container {container:?} not found in pod {name:?}"));
    }
    let seen = match server.observed(&pod).await {
        Ok(seen) => seen,
        Err(answer) => return *answer,
    };
    let (latest, before) = seen.last_two(container);
    let chosen = if query.flag("previous") { before.or(latest.filter(|c| c.is_exited())) } else { latest };
    let Some(chosen) = chosen else {
        let what = if query.flag("previous") { "previous terminated container" } else { "container" };
        let said = if query.flag("previous") {
            format!("{what} {container:?} in pod {name:?} not found")
        } else {
            format!("{what} {container:?} in pod {name:?} is waiting to start: ContainerCreating")
        };
        return text(StatusCode::BAD_REQUEST, said);
    };
    let path = PathBuf::from(&chosen.status.log_path);
    let reader = match Reader::open(&path, options.tail) {
        Ok(reader) => reader,
        Err(error) => {
            return text(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("failed to read the log {}: {error}", path.display()),
            );
        }
    };
    let (send, mut receive) = mpsc::channel(4);
    let ends = End { server: Arc::clone(server), uid: crate::names::uid(&pod), id: chosen.id().to_owned() };
    tokio::spawn(copy(reader, options, ends, send));
    flowing(futures::stream::poll_fn(move |context| receive.poll_recv(context)))
}

/// Whether a container still writes.
struct End {
    server: Arc<Server>,
    uid: String,
    id: String,
}

impl End {
    async fn has_come(&self) -> bool {
        match Observed::read(&self.server.shared.cri, &self.uid).await {
            Ok(seen) => !seen.containers.iter().any(|c| c.id() == self.id && c.is_running()),
            Err(_) => false,
        }
    }
}

async fn copy(mut reader: Reader, options: Options, end: End, send: mpsc::Sender<std::io::Result<Bytes>>) {
    let follow = options.follow;
    let mut shower = Shower::new(options);
    let (mut out, mut quiet, mut is_last) = (Vec::new(), 0u32, false);
    loop {
        let read = reader.next();
        match read {
            Err(error) => {
                let _ = send.send(Err(error)).await;
                return;
            }
            Ok(Some(line)) => {
                shower.show(&line, &mut out);
                quiet = 0;
                if out.len() < CHUNK && !shower.is_full() {
                    continue;
                }
            }
            Ok(None) => quiet += 1,
        }
        if !out.is_empty() && send.send(Ok(Bytes::from(std::mem::take(&mut out)))).await.is_err() {
            return;
        }
        if shower.is_full() || (quiet > 0 && (!follow || is_last)) {
            return;
        }
        if quiet > 0 {
            // What is written just before the end must be read after the end is known.
            is_last = quiet % 10 == 1 && end.has_come().await;
            if !is_last {
                tokio::select! {
                    () = send.closed() => return,
                    () = tokio::time::sleep(LOOK) => {}
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_come_from_the_query() {
        let found = options(&Query::parse("follow=true&tailLines=5&limitBytes=10&timestamps=true")).unwrap();
        assert!(found.follow && found.timestamps);
        assert_eq!((found.tail, found.limit), (Some(5), Some(10)));
        assert!(options(&Query::parse("tailLines=x")).is_err());
        let since = options(&Query::parse("sinceTime=2026-01-01T00%3A00%3A00Z")).unwrap().since;
        assert_eq!(since, "2026-01-01T00:00:00Z".parse().ok());
    }
}
