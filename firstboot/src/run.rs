//! The agent's life, one stage after another.

use crate::apply::{self, After, Cluster};
use crate::cli::problems;
use crate::facts::Facts;
use crate::image_info::ImageInfo;
use crate::layout::Layout;
use crate::notify::notify;
use crate::plan::{self, Desired};
use crate::problem::Problem;
use crate::profile::Profile;
use crate::state::State;
use crate::status::{Board, Phase};
use crate::step::Host;
use crate::update::fits;
use crate::{datasource, durable, stored, tune};

/// How a run ended without success.
#[derive(Debug)]
pub enum Ended {
    /// The input must be corrected first: starting again would change nothing.
    Refused(Vec<Problem>),
    /// Nobody has said yet what this machine must become: no fault of the image it runs.
    Unasked(Vec<Problem>),
    /// Something failed that may work the next time.
    Failed(Vec<Problem>),
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
    match apply::apply(&plan, &desired, &facts, &mut state, host, &mut cluster).await {
        Ok(()) => Ok((desired, cluster)),
        // The voters said no: asking again changes nothing.
        Err(error) if !desired.secrets.are_here() && error.is::<Problem>() => Err(Ended::Refused(problems(error))),
        Err(error) => Err(Ended::Failed(problems(error))),
    }
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
