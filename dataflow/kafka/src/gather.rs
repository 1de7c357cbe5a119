//! One request for many who ask at once.
use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{Mutex as Turns, oneshot};

/// Whoever asks while a request is under way shares the next: however many ask, there are one or two requests to wait for.
#[derive(Debug)]
pub(crate) struct Gather<A> {
    waiting: Mutex<Vec<Asking<A>>>,
    turn: Turns<()>,
}

#[derive(Debug)]
struct Asking<A> {
    topics: Vec<String>,
    answer: oneshot::Sender<Arc<A>>,
}

impl<A> Default for Gather<A> {
    fn default() -> Self {
        Self {
            waiting: Mutex::default(),
            turn: Turns::default(),
        }
    }
}

impl<A> Gather<A> {
    /// Has `request` answered for these topics, and for those of others with them. Dropping this while it asks for others
    /// lets one of them ask.
    pub(crate) async fn ask<Answered: Future<Output = A>>(
        &self,
        topics: &[String],
        request: impl Fn(Vec<String>) -> Answered,
    ) -> Arc<A> {
        loop {
            let (sender, mut answer) = oneshot::channel();
            self.waiting().push(Asking {
                topics: topics.to_vec(),
                answer: sender,
            });
            let _turn = tokio::select! {
                biased;
                answer = &mut answer => match answer {
                    Ok(answer) => return answer,
                    Err(_) => continue,
                },
                turn = self.turn.lock() => turn,
            };
            match answer.try_recv() {
                Ok(answer) => return answer,
                Err(oneshot::error::TryRecvError::Closed) => continue,
                Err(oneshot::error::TryRecvError::Empty) => {}
            }
            let asking = std::mem::take(&mut *self.waiting());
            // Whoever has gone wants no answer.
            let asking: Vec<_> = asking
                .into_iter()
                .filter(|one| !one.answer.is_closed())
                .collect();
            let all: HashSet<String> = asking
                .iter()
                .flat_map(|one| one.topics.iter().cloned())
                .collect();
            let answer = Arc::new(request(all.into_iter().collect()).await);
            for one in asking {
                let _ = one.answer.send(Arc::clone(&answer));
            }
            return answer;
        }
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Vec<Asking<A>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Mutex;

    use tokio::{
        sync::{Semaphore, mpsc},
        task::JoinSet,
    };

    use super::*;

    /// What is asked of a broker that answers when it is let.
    struct World {
        gather: Gather<usize>,
        begun: mpsc::UnboundedSender<()>,
        asked: Mutex<Vec<Vec<String>>>,
        let_go: Semaphore,
    }

    impl World {
        async fn ask(&self, topics: Vec<String>) -> usize {
            let request = |topics: Vec<String>| async {
                let count = topics.len();
                self.asked.lock().unwrap().push(topics);
                let _ = self.begun.send(());
                self.let_go.acquire().await.unwrap().forget();
                count
            };
            *self.gather.ask(&topics, request).await
        }
    }

    fn world() -> (Arc<World>, mpsc::UnboundedReceiver<()>) {
        let (begun, seen) = mpsc::unbounded_channel();
        let world = World {
            gather: Gather::default(),
            begun,
            asked: Mutex::default(),
            let_go: Semaphore::new(0),
        };
        (Arc::new(world), seen)
    }

    async fn until(what: impl Fn() -> bool) {
        while !what() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn many_share_the_next_request_also_when_its_asker_goes() {
        let (world, mut begun) = world();
        let ask = |topics: &[&str]| {
            let world = Arc::clone(&world);
            let topics = topics.iter().map(|topic| (*topic).to_owned()).collect();
            async move { world.ask(topics).await }
        };
        let first = tokio::spawn(ask(&["a"]));
        begun.recv().await.unwrap();
        let mut others = JoinSet::new();
        for number in 0..100 {
            others.spawn(ask(&[&format!("t{number}"), "shared"]));
        }
        until(|| world.gather.waiting().len() == 100).await;
        world.let_go.add_permits(1);
        assert_eq!(first.await.unwrap(), 1);
        begun.recv().await.unwrap();
        assert_eq!(world.asked.lock().unwrap()[1].len(), 101);
        world.let_go.add_permits(1);
        while let Some(answer) = others.join_next().await {
            assert_eq!(answer.unwrap(), 101);
        }
        assert_eq!(world.asked.lock().unwrap().len(), 2);

        // Whoever asks for others goes: one of these asks.
        let first = tokio::spawn(ask(&["a"]));
        begun.recv().await.unwrap();
        let others: Vec<_> = ["b", "c"].map(|name| tokio::spawn(ask(&[name]))).into();
        until(|| world.gather.waiting().len() == 2).await;
        first.abort();
        begun.recv().await.unwrap();
        world.let_go.add_permits(2);
        for other in others {
            assert_eq!(other.await.unwrap(), 2);
        }
        assert_eq!(world.asked.lock().unwrap().len(), 4);
    }
}
