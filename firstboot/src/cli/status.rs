//! `status` and `watch`: what the running agent says about this node.

use std::time::Duration;

use super::Outcome;
use crate::layout::Layout;
use crate::problem::Problem;
use crate::status::{Phase, Status, StepState};

fn read(layout: &Layout) -> Result<Status, Vec<Problem>> {
    let path = layout.status();
    let found = crate::durable::read_json(&path).map_err(super::problems)?;
    found.ok_or_else(|| {
        let remedy = "look at `systemctl status firstboot` and `journalctl -b -u firstboot`";
        vec![Problem::new("the agent has not reported yet", path.display().to_string(), remedy)]
    })
}

/// Prints the status; exit 1 only if there is none.
pub(super) fn status(layout: &Layout, json: bool) -> Outcome {
    let status = read(layout)?;
    if json {
        println!("{}", serde_json::to_string(&status).unwrap_or_default());
    } else {
        print!("{}", text(&status));
    }
    Ok(())
}

/// Prints the status whenever it changes, until interrupted.
pub(super) fn watch(layout: &Layout, json: bool) -> Outcome {
    let mut shown = None;
    loop {
        let current = read(layout).ok();
        if current != shown {
            if let Some(status) = &current {
                if json {
                    println!("{}", serde_json::to_string(status).unwrap_or_default());
                } else {
                    println!("{}", text(status));
                }
            }
            shown = current;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn text(status: &Status) -> String {
    let or_dash = |value: &Option<String>| value.clone().unwrap_or("-".to_owned());
    let mut text = format!(
        "{} of cluster {} ({}): {:?} since {}\n",
        or_dash(&status.slot),
        or_dash(&status.cluster),
        or_dash(&status.role),
        status.phase,
        status.since
    );
    text.push_str(&format!("verdict: {}\n", format!("{:?}", status.verdict).to_lowercase()));
    if let Some(reason) = &status.waiting_for {
        text.push_str(&format!("waiting for {reason}\n"));
    }
    if let Some(error) = &status.error {
        text.push_str(&format!("error: {error}\n"));
    }
    if let Some(vip) = &status.vip {
        text.push_str(&format!("virtual IP {}: {}\n", vip.address, if vip.here { "here" } else { "not here" }));
        if let Some(problem) = &vip.problem {
            text.push_str(&format!("not claimed: {problem}\n"));
        }
    }
    for note in &status.notes {
        text.push_str(&format!("note: {note}\n"));
    }
    if status.phase != Phase::Running {
        for step in &status.steps {
            let seconds = step.seconds.map_or(String::new(), |s| format!("{s:.1}s"));
            let mark = match step.state {
                StepState::Pending => "pending",
                StepState::Running => "running",
                StepState::Done => "done",
                StepState::Unchanged => "unchanged",
                StepState::Failed => "FAILED",
            };
            text.push_str(&format!("  {:<9} {mark:<9} {seconds:>6}  {}\n", step.id, step.detail));
        }
    }
    for key in &status.ignored_keys {
        text.push_str(&format!("ignored: user-data key `{}` (line {})\n", key.key, key.line));
    }
    text
}
