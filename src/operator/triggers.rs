//! The queues of the controllers: a resource is requeued by its own change, and by a change of
//! an object that it refers to. Further rules belong to the controller of a kind. Everything else
//! waits for its interval.

use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use kube::runtime::reflector::ObjectRef;

use super::kind::{Kind, for_each_kind};
use super::stores::{StoredKind, Stores};
use super::watch::Change;

/// A kind with a queue.
pub(crate) trait QueuedKind: StoredKind {
    fn queue(triggers: &Triggers) -> &UnboundedSender<ObjectRef<Self>>;
}

/// Makes the queues of all kinds.
macro_rules! kind_queues {
    ($($field:ident: $kind:ty => $controller:path;)*) => {
        /// The sending ends of the controllers' queues. Requeuing an object that is gone does
        /// nothing.
        #[derive(Clone)]
        pub(crate) struct Triggers {
            $($field: UnboundedSender<ObjectRef<$kind>>,)*
        }

        /// The receiving ends, one for each controller.
        pub(super) struct Queues {
            $(pub(super) $field: UnboundedReceiver<ObjectRef<$kind>>,)*
        }

        impl Triggers {
            pub(super) fn new() -> (Self, Queues) {
                $(let $field = unbounded();)*
                (Self { $($field: $field.0,)* }, Queues { $($field: $field.1,)* })
            }

            /// Requeues the objects of all kinds that refer to one of these.
            pub(crate) fn requeue_referrers<T: Kind>(&self, stores: &Stores, targets: &[&T]) {
                $(self.requeue_all(stores.$field.referring_to(targets).iter().map(|it| &**it));)*
            }

            /// Requeues the objects of all kinds in a Registry, which may not exist any more.
            pub(crate) fn requeue_registry(&self, stores: &Stores, registry: &str) {
                $(self.requeue_all(stores.$field.in_registry(registry).iter().map(|it| &**it));)*
            }
        }

        $(impl QueuedKind for $kind {
            fn queue(triggers: &Triggers) -> &UnboundedSender<ObjectRef<Self>> {
                &triggers.$field
            }
        })*
    };
}
for_each_kind!(kind_queues);

impl Triggers {
    /// Requeues an object by its reference.
    pub(crate) fn requeue<K: QueuedKind>(&self, object: ObjectRef<K>) {
        // Sending fails only when the controller has ended.
        let _ = K::queue(self).unbounded_send(object);
    }

    pub(crate) fn requeue_all<'a, K: QueuedKind>(&self, objects: impl IntoIterator<Item = &'a K>) {
        for object in objects {
            self.requeue(ObjectRef::from_obj(object));
        }
    }

    /// Requeues an object that changed, and the objects that refer to it, now or before, if the
    /// change affects them.
    pub(super) fn object_changed<K: QueuedKind>(&self, stores: &Stores, change: &Change<K>) {
        let Some(object) = change.either() else { return };
        self.requeue(ObjectRef::from_obj(&**object));
        if K::affects_referrers(change) {
            let targets: Vec<_> =
                [&change.old, &change.new].into_iter().flatten().map(|it| &**it).collect();
            self.requeue_referrers(stores, &targets);
        }
    }
}
