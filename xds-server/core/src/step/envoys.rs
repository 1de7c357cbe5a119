//! What Envoys have taken, left behind or refused.
use crate::{Generation, State};

pub(crate) fn acknowledged(state: &mut State, serving: Generation, released: Generation) {
    let world = &mut state.world;
    world.serving = world.serving.max(serving);
    world.released = world.released.max(released);
    while let Some((gate, _)) = world.awaiting_serving.first()
        && *gate <= world.serving
        && let Some((_, model)) = world.awaiting_serving.pop_first()
    {
        world.dirty.insert(model);
    }
    while let Some((gate, _)) = world.awaiting_release.first()
        && *gate <= world.released
        && let Some((_, model)) = world.awaiting_release.pop_first()
    {
        world.dirty.insert(model);
    }
    state.experiments.acknowledged(state.world.serving);
    state.pipelines.acknowledged(state.world.serving);
}

pub(crate) fn rejected(state: &mut State, model: &str, reason: Option<String>) {
    if let Some(entry) = state.pipelines.by_endpoint_mut(model) {
        if entry.rejected.as_deref() != reason.as_deref() {
            entry.rejected = reason.map(Into::into);
            let name = entry.name.clone();
            state.pipelines.touch(&name);
        }
        return;
    }
    let Some(entry) = state.models.get_mut(model) else {
        return;
    };
    if entry.rejected.as_deref() != reason.as_deref() {
        entry.rejected = reason.map(Into::into);
        state.world.touch(&entry.name);
    }
}
