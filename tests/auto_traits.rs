//! Every public type: what it may cross, and that it can be shown.

use std::cell::Cell;
use std::convert::Infallible;
use std::fmt::Debug;
use std::hash::Hash;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::rc::Rc;
use std::sync::Arc;

use futureproof::prelude::*;
use futureproof::{
    Cause, Checked, Control, Ending, Futureproof, MapTasks, OwnPool, Owned, Panic,
    ParseErrorPolicyError, PerWorker, Progress, QueueItems, QueueSource, ReadAhead, Remainder,
    RunError, Scope, Snapshot, Spawn,
};

fn is_send<T: Send>() {}
fn is_sync<T: Sync>() {}
fn is_unpin<T: Unpin>() {}
fn is_static<T: Send + Sync + Unpin + Debug + 'static>() {}
fn is_unwind_safe<T: UnwindSafe + RefUnwindSafe>() {}
fn is_copy<T: Copy>() {}
fn is_clone<T: Clone>() {}
fn is_value<T: Copy + Eq + Hash + Debug>() {}
fn is_error<T: std::error::Error + Send + Sync + 'static>() {}

/// Does not compile where `$type` is `$bound`: the choice of `check` would then be ambiguous.
macro_rules! assert_not {
    ($type:ty: $bound:path) => {{
        trait Ambiguous<A> {
            fn check() {}
        }
        impl<T: ?Sized> Ambiguous<()> for T {}
        struct Bound;
        impl<T: ?Sized + $bound> Ambiguous<Bound> for T {}
        <$type as Ambiguous<_>>::check();
    }};
}

/// Neither shown, nor cloned.
struct Plain;

type Source = std::vec::IntoIter<u32>;
type Local = std::vec::IntoIter<Rc<u32>>;

#[test]
fn public_types_cross_threads_where_their_parts_do() {
    is_static::<ErrorPolicy>();
    is_static::<Ending>();
    is_static::<Snapshot>();
    is_static::<Progress>();
    is_static::<CancellationToken>();
    is_static::<Panic>();
    is_static::<OwnPool>();
    is_static::<ParseErrorPolicyError>();
    is_static::<Task<u32, String>>();
    is_static::<TaskError<u32, String>>();
    is_static::<Cause<String>>();
    is_static::<Remainder<Source, u32, String>>();
    is_static::<Queue<Cell<u32>>>();
    is_static::<QueueSource<u32>>();
    is_static::<QueueItems<u32>>();
    is_static::<PerWorker<Cell<u32>>>();
    is_static::<Owned<Source>>();
    is_static::<RunError>();
    is_error::<RunError>();
    is_error::<Panic>();
    is_error::<Cause<RunError>>();
    is_send::<Checked<'_, Source, u32, String>>();
    is_clone::<Queue<Plain>>();
    is_send::<Futureproof<Source>>();
    is_send::<MapTasks<'static, Source, u32, String>>();
    is_unpin::<MapTasks<'static, Source, u32, String>>();
    is_send::<Task<Cell<u32>, Cell<u32>>>();
    is_send::<TaskError<Cell<u32>, Cell<u32>>>();
    is_send::<MapTasks<'static, std::vec::IntoIter<Cell<u32>>, Cell<u32>, Cell<u32>>>();
    is_send::<ReadAhead<Source>>();
    is_sync::<Scope<'static, 'static>>();
}

#[test]
fn public_types_stay_where_their_parts_must() {
    assert_not!(Task<Rc<u32>, u32>: Send);
    assert_not!(Task<u32, Cell<u32>>: Sync);
    assert_not!(TaskError<u32, Rc<u32>>: Send);
    assert_not!(Remainder<Local, u32, u32>: Send);
    assert_not!(MapTasks<'static, Local, u32, u32>: Send);
    assert_not!(MapTasks<'static, Source, u32, u32>: Clone);
    assert_not!(Panic: Clone);
    assert_not!(MapTasks<'static, Source, u32, u32>: ExactSizeIterator);
}

#[test]
fn values_are_values() {
    is_value::<ErrorPolicy>();
    is_value::<Ending>();
    is_copy::<Snapshot>();
    is_clone::<Progress>();
    is_clone::<CancellationToken>();
    is_clone::<Task<u32, String>>();
    is_unwind_safe::<ErrorPolicy>();
    is_unwind_safe::<Snapshot>();
    is_unwind_safe::<Ending>();
    assert_eq!(ErrorPolicy::default(), Raise);
}

#[test]
fn errors_are_errors() {
    is_error::<TaskError<u32, std::io::Error>>();
    is_error::<TaskError<u32, Infallible>>();
    is_error::<ParseErrorPolicyError>();
    // Even of an item that cannot be shown.
    is_error::<TaskError<Plain, std::fmt::Error>>();
    let _: Box<dyn std::error::Error + Send + Sync> =
        "nonsense".parse::<ErrorPolicy>().unwrap_err().into();
}

#[test]
fn homes_are_homes() {
    fn is_home<'s, P: Spawn<'s>>() {}
    is_home::<OwnPool>();
    is_home::<Arc<rayon::ThreadPool>>();
    is_home::<&Scope<'_, '_>>();
    is_home::<&rayon::Scope<'_>>();
}

// rayon: debug.rs.
#[test]
fn all_can_be_shown_whatever_they_hold() {
    let hidden = Plain;
    let builder = [Plain].into_iter().futureproof(Log).name("shown");
    let text = format!("{builder:?}");
    assert!(text.contains("Log") && text.contains("shown"), "{text}");
    let mut run = builder.num_threads(1).map_tasks(move |_: &Plain| {
        let _ = &hidden;
        if true { Err("no") } else { Ok(Plain) }
    });
    assert!(format!("{run:?}").contains("MapTasks"));
    let error = run.next().unwrap().err().unwrap();
    assert!(format!("{error:?}").contains("no"));
    assert!(!format!("{:?}", run.progress()).is_empty());
    assert!(!format!("{:?}", run.progress().snapshot()).is_empty());
    assert!(!format!("{:?}", run.ending()).is_empty());
    assert!(format!("{:?}", run.into_remainder()).contains("Remainder"));
    assert!(!format!("{:?}", CancellationToken::new()).is_empty());
    let run = [()].into_iter().futureproof(Ignore).num_threads(1);
    let mut run = run.map_tasks(infallible(move |_: &()| -> () {
        std::panic::resume_unwind(Box::new("boom"))
    }));
    assert!(format!("{:?}", run.next().unwrap().err().unwrap()).contains("boom"));
    futureproof::scope(1, |scope| assert!(format!("{scope:?}").contains("Scope")));
    assert!(!format!("{:?}", OwnPool::default()).is_empty());
    let control = Control::new();
    control.set_concurrency(3);
    let text = format!("{control:?}");
    assert!(text.contains("is_paused: false"), "{text}");
    assert!(text.contains("concurrency: Some(3)"), "{text}");
    assert!(format!("{:?}", PerWorker::new(|| Plain)).contains("PerWorker"));
    let mut queue = Queue::from_iter([Plain]);
    queue.extend([Plain]);
    assert!(format!("{queue:?}").contains("len: 2"));
    let run = queue.source().futureproof(Raise);
    let run = run.map_tasks(infallible(|_: &Plain| ())).checked();
    assert!(format!("{run:?}").contains("Checked"), "{run:?}");
    let text = format!("{:?}", run.into_inner().into_remainder().source);
    assert!(
        text.contains("QueueItems") && text.contains("len"),
        "{text}"
    );
    let run = [3].into_iter().read_ahead(7).futureproof(Raise);
    let run = run.map_tasks(infallible(|n: &i32| *n));
    let text = format!("{:?}", run.into_remainder().source);
    assert!(text.contains("idle") && text.contains('7'), "{text}");
    let run = [3].into_iter().futureproof(Raise);
    let run = run.map_tasks_owned(Ok::<i32, Infallible>);
    let text = format!("{:?}", run.into_remainder().source);
    assert!(text.contains("Owned") && text.contains('3'), "{text}");
}

#[test]
fn a_run_moves_between_threads_half_way() {
    let mut run = (0..100u32)
        .futureproof(Raise)
        .num_threads(2)
        .map_tasks(infallible(|n: &u32| *n));
    run.next().unwrap().unwrap();
    assert_eq!(std::thread::spawn(move || run.count()).join().unwrap(), 99);
}

#[test]
fn policies_are_written_as_they_are_read() {
    for policy in [Raise, Log, Ignore, Tolerate(0), Tolerate(10)] {
        assert_eq!(policy.to_string().parse(), Ok(policy));
    }
    assert_eq!(Tolerate(10).to_string(), "tolerate:10");
    for text in ["", "tolerate", "tolerate:", "tolerate:-1", "raise:1"] {
        assert!(text.parse::<ErrorPolicy>().is_err(), "{text}");
    }
}
