//! The agent's life, one stage after another.

use crate::apply::{self, After, Cluster, FailedStep};
use crate::cli::problems;
use crate::facts::Facts;
use crate::image_info::ImageInfo;
use crate::layout::Layout;
use crate::notify::notify;
use crate::plan::{self, Desired};
use crate::problem::Problem;
use crate::profile::Profile;
use crate::services::Services;
use crate::state::State;
use crate::status::{Board, Phase};
use crate::step::{self, Host};
use crate::update::fits;
use crate::verdict::TRIES;
use crate::{datasource, durable, setback, stored, tune};

/// How a run ended without success.
#[derive(Debug)]
pub enum Ended {
    /// The input must be corrected first: starting again would change nothing.
    Refused(Vec<Problem>),
    /// Nobody has said yet what this machine must become: no fault of the image it runs.
    Unasked(Vec<Problem>),
    /// Something failed that may work the next time.
    Failed(Vec<Problem>),
    /// What needs nobody else has failed too often in a row: it is tried again, but another version may do better.
    Broken(Vec<Problem>),
}

/// datasource -> NodeSpec; (NodeSpec, Facts, State) -> Plan -> apply steps -> register -> watch.
pub async fn run<C: Cluster>(host: &Host, start: impl Fn(&Host, &Desired) -> C) -> Result<After, Ended> {
    durable::remove_unfinished(&host.layout.run()).map_err(|error| Ended::Failed(problems(error)))?;
    let (desired, mut cluster) = become_node(host, &start).await?;
    if !desired.secrets.are_here() {
        // It has joined: what the voters answered is stored, and the rest can be planned.
        (_, cluster) = become_node(host, &start).await?;
    }
    notify("READY=1");
    host.board.phase(Phase::Running);
    cluster.watch().await.map_err(|error| Ended::Failed(problems(error)))
}

/// As far as is known what to become: a node that has yet to join ends where it has joined.
async fn become_node<C: Cluster>(host: &Host, start: impl Fn(&Host, &Desired) -> C) -> Result<(Desired, C), Ended> {
    let (layout, board) = (&host.layout, &host.board);
    let (desired, facts) = decide(layout, board).await?;
    let mut state = State::load(layout).map_err(|error| Ended::Refused(problems(error)))?;
    board.phase(Phase::Planning);
    let plan = plan::plan(&desired, &facts, &state).map_err(Ended::Refused)?;
    board.phase(Phase::Applying);
    let mut cluster = start(host, &desired);
    let mut services = Services::new(layout, &desired);
    let applied = tokio::select! {
        applied = apply::apply(&plan, &desired, &facts, &mut state, host, &mut cluster) => applied,
        never = services.guard(board) => match never {},
    };
    board.cannot_start(None);
    match applied {
        Ok(()) => Ok((desired, cluster)),
        // The voters said no: asking again changes nothing.
        Err(error) if !desired.secrets.are_here() && error.is::<Problem>() => Err(Ended::Refused(problems(error))),
        Err(error) if is_broken(layout, &error) => Err(Ended::Broken(problems(error))),
        Err(error) => Err(Ended::Failed(problems(error))),
    }
}

/// Counts a failure that is this machine's own.
fn is_broken(layout: &Layout, error: &anyhow::Error) -> bool {
    let Some(FailedStep(id)) = error.downcast_ref::<FailedStep>().filter(|step| step::is_local(step.0)) else {
        return false;
    };
    let times = setback::count(layout, id);
    times.map_err(|error| tracing::warn!("counting failures: {error:#}")).is_ok_and(|times| times >= TRIES)
}

/// What this boot must become: nothing is written but the acceptance itself.
async fn decide(layout: &Layout, board: &Board) -> Result<(Desired, Facts), Ended> {
    board.phase(Phase::Searching);
    let facts = Facts::gather(layout);
    let found = datasource::search(layout, board, datasource::patience(layout)).await;
    let unasked = matches!(found, Ok(None)) && !layout.spec().exists();
    let refused = |found| if unasked { Ended::Unasked(found) } else { Ended::Refused(found) };
    let (accepted, secrets) = stored::accept(layout, found, &facts, board).map_err(refused)?;
    let refused = |error| Ended::Refused(problems(error));
    let image = ImageInfo::load(layout).map_err(refused)?;
    fits::check(layout, &image, None).map_err(refused)?.map_err(|misfit| Ended::Refused(vec![misfit.into()]))?;
    let profile = Profile::load(layout, accepted.spec.role).map_err(refused)?;
    board.update(|status| {
        status.cluster = Some(accepted.spec.cluster.name.clone());
        status.slot = Some(accepted.spec.slot.clone());
        status.role = Some(accepted.spec.role.name().to_owned());
        status.ignored_keys.clone_from(&accepted.ignored);
    });
    let desired = Desired { accepted, secrets, image, profile };
    tune::notes(&desired, &facts).into_iter().for_each(|note| board.note(note));
    Ok((desired, facts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_here_again_and_again_is_broken_and_what_needs_others_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        let failed = |id| {
            let problem = Problem::new("haproxy.service does not start", "haproxy.service", "");
            anyhow::Error::from(problem).context(FailedStep(id))
        };
        let broken: Vec<_> = (0..=TRIES).map(|_| is_broken(&layout, &failed("haproxy"))).collect();
        assert_eq!(broken, [false, false, false, false, true, true]);
        for id in ["network", "join", "form", "etcd", "slot"] {
            assert!((0..2 * TRIES).all(|_| !is_broken(&layout, &failed(id))), "{id}");
        }
        assert!(!is_broken(&layout, &anyhow::anyhow!("the lease was lost")));
        assert_eq!(problems(failed("haproxy"))[0].what, "haproxy.service does not start", "the reason is shown");
    }
}
