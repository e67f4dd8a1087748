//! Runs a plan's steps in order: `[n/m] … done in 0.3s` lines, a durable record after each, stop at the first failure.

use std::time::Instant;

use anyhow::{Context, Result};

use crate::facts::Facts;
use crate::plan::{Desired, Due, Lasts, Plan, Step};
use crate::setback;
use crate::state::State;
use crate::status::{StepState, StepStatus};
use crate::step::{Action, Host};

/// Steps that need the agent's running parts (its server, its etcd client): `run` carries them out.
pub trait Cluster {
    /// Asks the voters to be let in, and keeps what they answer.
    fn join(&mut self) -> impl Future<Output = Result<()>>;
    /// Waits until the operator has brought the founding bundle, and keeps it.
    fn form(&mut self) -> impl Future<Output = Result<()>>;
    /// Founds or joins etcd and returns when it has quorum and authentication.
    fn etcd(&mut self, unit: &str) -> impl Future<Output = Result<()>>;
    /// Holds this slot's lease.
    fn slot(&mut self) -> impl Future<Output = Result<()>>;
    /// Registers and watches until the agent is stopped, or must start itself anew.
    fn watch(&mut self) -> impl Future<Output = Result<After>>;
}

/// What follows a run that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// Nothing: it was stopped.
    End,
    /// The same again, with what has changed on disk.
    StartAnew,
}

/// Which step it was that failed.
#[derive(Debug, thiserror::Error)]
#[error("step `{0}`")]
pub struct FailedStep(pub &'static str);

/// Applies what is due.
pub async fn apply(
    plan: &Plan,
    desired: &Desired,
    facts: &Facts,
    state: &mut State,
    host: &Host,
    cluster: &mut impl Cluster,
) -> Result<()> {
    let shown = plan.steps.iter().map(|step| StepStatus {
        id: step.id.to_owned(),
        state: if step.due == Due::No { StepState::Unchanged } else { StepState::Pending },
        seconds: None,
        detail: step.summary.clone(),
    });
    host.board.update(|status| status.steps = shown.collect());
    for (number, step) in plan.steps.iter().enumerate().filter(|(_, step)| step.due != Due::No) {
        let label = format!("[{}/{}] {}", number + 1, plan.steps.len(), step.id);
        let start = Instant::now();
        show(host, number, StepState::Running, None, &step.summary);
        let result = one(step, desired, host, cluster).await;
        let seconds = start.elapsed().as_secs_f64();
        if let Err(error) = result {
            show(host, number, StepState::Failed, Some(seconds), &format!("{error:#}"));
            tracing::error!("{label} failed after {seconds:.1}s: {error:#}");
            return Err(error.context(FailedStep(step.id)));
        }
        // A step of this process leaves nothing behind that a record could speak for.
        if step.lasts != Lasts::Run {
            let recorded = state.record(&host.layout, step.id, &step.digest, &facts.boot_id);
            recorded.context("recording the step").context(FailedStep(step.id))?;
        }
        setback::over(&host.layout, step.id)?;
        show(host, number, StepState::Done, Some(seconds), &step.summary);
        tracing::info!("{label} {} done in {seconds:.1}s", step.summary);
    }
    Ok(())
}

async fn one(step: &Step, desired: &Desired, host: &Host, cluster: &mut impl Cluster) -> Result<()> {
    match &step.action {
        Action::Etcd { unit } => cluster.etcd(unit).await,
        Action::Join => cluster.join().await,
        Action::Form => cluster.form().await,
        Action::Slot => cluster.slot().await,
        action => action.apply(host, desired).await,
    }
}

fn show(host: &Host, number: usize, state: StepState, seconds: Option<f64>, detail: &str) {
    host.board.update(|status| {
        if let Some(step) = status.steps.get_mut(number) {
            step.state = state;
            step.seconds = seconds.map(|s| (s * 1000.0).round() / 1000.0);
            detail.clone_into(&mut step.detail);
        }
    });
}
