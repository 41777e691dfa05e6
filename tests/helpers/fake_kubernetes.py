"""The API server of a rehearsal without pods: a test says what becomes of a JobSet."""
from downscale.launch.rehearsal.api import ApiServer


class FakeKubernetes(ApiServer):
    """`objects` {name: JobSet}."""

    @property
    def objects(self):
        return self.kept['jobsets']

    def set(self, name, **status):
        """A JobSet has another status."""
        self.objects[name]['status'] = status

    def add_pod(self, name, index, log, replica=0):
        """A job of a JobSet has a pod of the completion `index`, which has printed `log`."""
        job, = self.objects[name]['spec']['replicatedJobs']
        labels = job['template']['spec']['template']['metadata']['labels']
        self.pods[f'{name}-slice-{replica}-{index}-abcde'] = (
            {**labels, 'jobset.sigs.k8s.io/job-index': str(replica),
             'batch.kubernetes.io/job-completion-index': str(index)}, log)

    def made(self):
        """Names of the JobSets that were asked for and are no copies of one that was there."""
        return [path for verb, path in self.calls if verb == 'created']
