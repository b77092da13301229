//! Runs that outlive their call: in the background, in the queue, polled and cancelled.

use crate::case::{Act, Case, Group, bash, python};

const fn background(language: &'static str, code: &'static str) -> Act {
    Act::Background { language, code }
}

pub(crate) fn group() -> Group {
    Group {
        name: "runs",
        cases: vec![
            python("a conversation begins", "kept = 1"),
            Case::new(
                "a run in the background",
                background(
                    "python",
                    "import time\nprint('one', flush=True)\ntime.sleep(3)\nprint('two')\n'end'",
                ),
            )
            .ends("running|queued")
            .says("run_id: run-")
            .says("call get_run with run_id"),
            Case::new("is followed", Act::Poll("a run in the background"))
                .says("one\ntwo")
                .gives("'end'"),
            Case::new("and stays readable", Act::Poll("a run in the background")).gives("'end'"),
            Case::new(
                "a long run",
                background("python", "import time\nlong = 1\ntime.sleep(100)"),
            )
            .ends("running|queued"),
            Case::new("one behind it", background("python", "second = 2"))
                .ends("queued")
                .says("python is busy: run run-")
                .says("do not send it again")
                .says("bash has a queue of its own")
                .says("cancel_run with run_id"),
            bash("another language is free", "echo free").says("free"),
            Case::new("a third that is withdrawn", background("python", "third = 3")).ends("queued"),
            Case::new(
                "is cancelled without having run",
                Act::Cancel("a third that is withdrawn"),
            )
            .ends("cancelled"),
            Case::new("all are listed", Act::List)
                .ends("")
                .says("· running · python ·")
                .says("· queued · python ·")
                .says("second = 2")
                .says("cancelled"),
            Case::new("the long one is cancelled", Act::Cancel("a long run"))
                .ends("cancelled")
                .says("the run was cancelled. Variables and files are kept"),
            Case::new("the one behind it ran by itself", Act::Poll("one behind it")),
            python(
                "what was cancelled left its state",
                "kept, long, second, 'third' in dir()",
            )
            .gives("(1, 1, 2, False)"),
            Case::new(
                "a failure in the background",
                background("python", "raise ValueError('later')"),
            )
            .ends("running|queued|error"),
            Case::new("is told to who asks", Act::Poll("a failure in the background"))
                .ends("error")
                .says("ValueError: later"),
            Case::new(
                "a job of bash",
                background("bash", "for i in 1 2 3; do echo step $i; sleep 0.5; done"),
            )
            .ends("running|queued"),
            Case::new("is followed as well", Act::Poll("a job of bash")).says("step 1\nstep 2\nstep 3"),
            Case::new(
                "a run that is over cannot be cancelled",
                Act::Cancel("a job of bash"),
            )
            .says("step 3"),
        ],
    }
}
