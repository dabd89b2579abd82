//! What waits and what runs, as text for whom it interests: `/debug/api_priority_and_fairness/`.

use std::fmt::Write as _;

use super::Fairness;

/// Columns are this wide at least.
const WIDTH: usize = 8;

impl Fairness {
    /// The text of one of the dumps. `None` if there is none of this name.
    pub fn dump(&self, name: &str, with_details: bool) -> Option<String> {
        let rows = match name {
            "dump_priority_levels" => self.dump_levels(),
            "dump_queues" => self.dump_queues(),
            "dump_requests" => self.dump_requests(with_details),
            _ => return None,
        };
        Some(aligned(&rows))
    }

    fn dump_levels(&self) -> Vec<Vec<String>> {
        let mut rows = vec![row(&[
            "PriorityLevelName",
            "ActiveQueues",
            "IsIdle",
            "IsQuiescing",
            "WaitingRequests",
            "ExecutingRequests",
            "DispatchedRequests",
            "RejectedRequests",
            "TimedoutRequests",
            "CancelledRequests",
        ])];
        for (name, entry) in &self.config.load().levels {
            let state = entry.level.state.lock();
            let queues = &state.queues;
            let active = queues.queues.iter().filter(|queue| !queue.waiting.is_empty()).count();
            rows.push(vec![
                name.clone(),
                active.to_string(),
                queues.is_idle().to_string(),
                entry.level.quiescing.load(std::sync::atomic::Ordering::Relaxed).to_string(),
                queues.waiting.to_string(),
                queues.executing.to_string(),
                queues.dispatched.to_string(),
                queues.rejected.to_string(),
                queues.timed_out.to_string(),
                queues.cancelled.to_string(),
            ]);
        }
        rows
    }

    fn dump_queues(&self) -> Vec<Vec<String>> {
        let mut rows = vec![row(&[
            "PriorityLevelName",
            "Index",
            "PendingRequests",
            "ExecutingRequests",
            "SeatsInUse",
            "NextDispatchR",
            "InitialSeatsSum",
            "MaxSeatsSum",
            "TotalWorkSum",
        ])];
        for (name, entry) in &self.config.load().levels {
            let state = entry.level.state.lock();
            for (index, queue) in state.queues.queues.iter().enumerate() {
                rows.push(vec![
                    name.clone(),
                    index.to_string(),
                    queue.waiting.len().to_string(),
                    queue.executing.to_string(),
                    queue.seats_in_use.to_string(),
                    queue.next_dispatch.to_string(),
                    queue.initial_seats.to_string(),
                    queue.seats_waiting.to_string(),
                    queue.work_waiting.to_string(),
                ]);
            }
        }
        rows
    }

    /// Those that wait; who runs is counted and not known by name.
    fn dump_requests(&self, with_details: bool) -> Vec<Vec<String>> {
        let mut head = row(&[
            "PriorityLevelName",
            "FlowSchemaName",
            "QueueIndex",
            "RequestIndexInQueue",
            "FlowDistingsher",
            "ArriveTime",
            "InitialSeats",
            "FinalSeats",
            "AdditionalLatency",
            "StartTime",
        ]);
        if with_details {
            head.extend(row(&[
                "UserName",
                "Verb",
                "APIPath",
                "Namespace",
                "Name",
                "APIVersion",
                "Resource",
                "SubResource",
            ]));
        }
        let mut rows = vec![head];
        for (name, entry) in &self.config.load().levels {
            let state = entry.level.state.lock();
            for (at, queue) in state.queues.queues.iter().enumerate() {
                for (index, waiting) in queue.waiting.iter().enumerate() {
                    let about = &waiting.about;
                    let mut row = vec![
                        name.clone(),
                        state.names[waiting.flow].clone(),
                        at.to_string(),
                        index.to_string(),
                        about.distinguisher.clone(),
                        waiting.arrived_at.to_string(),
                        waiting.work.initial.to_string(),
                        waiting.work.last.to_string(),
                        if waiting.work.linger.is_zero() {
                            "0s".to_owned()
                        } else {
                            format!("{:?}", waiting.work.linger)
                        },
                        "0001-01-01T00:00:00Z".to_owned(),
                    ];
                    if with_details {
                        let info = &about.info;
                        let version = match info.group.as_str() {
                            "" => info.version.clone(),
                            group => format!("{group}/{}", info.version),
                        };
                        row.extend([
                            about.user.clone(),
                            info.verb.to_owned(),
                            info.path.clone(),
                            info.namespace.clone(),
                            info.name.clone(),
                            version,
                            info.resource.clone(),
                            info.subresource.clone(),
                        ]);
                    }
                    rows.push(row);
                }
            }
        }
        rows
    }
}

fn row(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

/// Cells below one another, each but the last of a row with a comma.
fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width =
        |column: usize| rows.iter().map(|row| row[column].chars().count() + 2).max().unwrap_or(0).max(WIDTH);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        for (cell, width) in row.iter().zip(&widths).take(columns - 1) {
            let _ = write!(text, "{:width$}", format!("{cell},"));
        }
        text.push_str(&row[columns - 1]);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_shown_below_one_another() {
        let text = Fairness::new(600).dump("dump_priority_levels", false).expect("a dump");
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[0].starts_with("PriorityLevelName, ActiveQueues, IsIdle, IsQuiescing, WaitingRequests, "),
            "{text}"
        );
        assert!(
            lines[1].starts_with("catch-all,         0,            true,   false,       0,               "),
            "{text}"
        );
        assert_eq!(lines.len(), 3);
    }
}
