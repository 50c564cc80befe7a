"""Errors of Beam's runners, as Flink, Spark and the job services word them."""

import grpc
import pytest

from beam_pipeline.runners.run_job import Job, after_failure, cause

PREFIX = "Pipeline BeamApp-root-1129233435_047fcfe3-db38 failed in state FAILED: "
SPARK_CONTEXT = """\
org.apache.spark.SparkException: Only one SparkContext should be running in this JVM (see \
SPARK-2243).The currently running SparkContext was created at:
org.apache.spark.api.java.JavaSparkContext.<init>(JavaSparkContext.scala:58)
org.apache.beam.runners.spark.SparkPipelineRunner.run(SparkPipelineRunner.java:113)
org.apache.beam.vendor.guava.v32_1_2_jre.com.google.common.util.concurrent.\
TrustedListenableFutureTask$TrustedFutureInterruptibleTask.run(TrustedListenableFutureTask.java:131)
java.base/java.util.concurrent.ThreadPoolExecutor$Worker.run(ThreadPoolExecutor.java:635)
java.base/java.lang.Thread.run(Thread.java:840)"""
LOST_EXECUTOR = """\
org.apache.spark.SparkException: Job aborted due to stage failure: Task 1 in stage 2.0 failed 4 \
times, most recent failure: Lost task 1.3 in stage 2.0 (TID 9) (10.0.0.2 executor 1): \
ExecutorLostFailure (executor 1 exited caused by one of the running tasks) Reason: \
Command exited with code 137
Driver stacktrace:"""
PYTHON = """\
org.apache.spark.SparkException: Job aborted due to stage failure: Task 0 in stage 0.0 failed 1 \
times, most recent failure: Lost task 0.0 in stage 0.0 (TID 0) (host executor driver): \
java.lang.RuntimeException: Error received from SDK harness for instruction 3: \
Traceback (most recent call last):
  File "apache_beam/runners/common.py", line 1499, in process
    return self.do_fn_invoker.invoke_process(windowed_value)
ValueError: first

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "apache_beam/runners/worker/sdk_worker.py", line 312, in _execute
    response = task()
ValueError: what went wrong [while running 'Read headers']

\tat org.apache.beam.runners.fnexecution.FnApiControlClient.onNext(FnApiControlClient.java:203)
\t... 1 more
Driver stacktrace:"""
FLINK = """\
org.apache.flink.client.program.ProgramInvocationException: Job failed (JobID: cd52)
\tat org.apache.flink.client.JobClientAdapter.lambda$null$6(JobClientAdapter.java:130)
\tat java.base/java.util.concurrent.CompletableFuture.uniApplyNow(Unknown Source)
Caused by: org.apache.flink.runtime.JobException: Recovery is suppressed by NoRestartBackoff
\tat org.apache.flink.runtime.ExecutionFailureHandler.handle(ExecutionFailureHandler.java:180)
\t... 5 more
Caused by: java.util.concurrent.TimeoutException: Heartbeat of TaskManager with id tm-1 timed out.
\tat org.apache.flink.runtime.jobmaster.JobMaster.notifyHeartbeatTimeout(JobMaster.java:1600)
\t... 31 more"""


JOB = Job("FlinkRunner", "headct-1", "localhost:8099")
RESUMES = " was lost); the same command resumes"


class Gone(grpc.RpcError):
    """What gRPC raises where the other side goes away."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__()
        self.code = lambda: code
        self.details = lambda: details


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            PREFIX + SPARK_CONTEXT,
            "org.apache.spark.SparkException: Only one SparkContext should be running in this JVM",
        ),
        (LOST_EXECUTOR, "org.apache.spark.SparkException: Job aborted due to stage failure: Task"),
        (PREFIX + PYTHON, "ValueError: what went wrong [while running 'Read headers']"),
        (
            FLINK,
            "org.apache.flink.client.program.ProgramInvocationException: Job failed (JobID: cd52); "
            "caused by java.util.concurrent.TimeoutException: Heartbeat of TaskManager with id",
        ),
        ("one line", "one line"),
        (PREFIX + "unknown error", "it gives no reason: look at the cluster's logs"),
        ("", "RuntimeError"),
        (
            "Traceback (most recent call last):\n  File x\n    raise y\nKeyError: 'a'\n",
            "KeyError: 'a'",
        ),
        (
            "\n".join(SPARK_CONTEXT.splitlines()[1:]),  # nothing but frames
            "RuntimeError",
        ),
    ],
)
def test_the_line_that_says_what_went_wrong_is_found(text: str, expected: str) -> None:
    found = cause(RuntimeError(text))
    assert found.startswith(expected)
    assert "\n" not in found
    assert len(found) <= 303


def test_details_of_grpc_are_told() -> None:
    assert cause(Gone(grpc.StatusCode.UNKNOWN, "Stream removed")) == "Stream removed"


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        (LOST_EXECUTOR, True),
        (FLINK, True),
        ("org.apache.beam.vendor.grpc.v1p69p0.io.grpc.StatusRuntimeException: CANCELLED: x", True),
        ("java.lang.IllegalStateException: CANCELLED: client cancelled", True),
        (SPARK_CONTEXT, False),
        (PYTHON, False),
        ("ClassNotFoundException: org.apache.beam.runners.flink.FlinkPipelineRunner", False),
    ],
)
def test_a_worker_that_went_away_is_told_from_a_step_that_failed(text: str, lost: bool) -> None:
    error = RuntimeError(PREFIX + text)
    assert after_failure(error, JOB) == (f" (a worker or the job server{RESUMES}" if lost else "")


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (Gone(grpc.StatusCode.UNAVAILABLE, "Socket closed"), True),
        (Gone(grpc.StatusCode.UNKNOWN, "Stream removed (Socket closed)"), True),
        (Gone(grpc.StatusCode.CANCELLED, "Channel closed!"), True),
        (Gone(grpc.StatusCode.INVALID_ARGUMENT, "no such option"), False),
        (RuntimeError("Socket closed"), False),
    ],
)
def test_a_job_service_that_went_away(error: Exception, lost: bool) -> None:
    service = "(the job service was lost; the cluster may still run job headct-1); the same"
    assert (service in after_failure(error, JOB)) is lost


def test_a_job_server_that_ends_with_the_command_has_no_job_to_go_on_with() -> None:
    error = Gone(grpc.StatusCode.UNAVAILABLE, "Socket closed")
    assert after_failure(error, None) == f" (a worker or the job server{RESUMES}"
