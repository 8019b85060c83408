package pods

import (
	"context"
	"net/netip"
	"time"

	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/nodeagent/internal/kernel/link"
	"podwire.dev/services/nodeagent/internal/plan"
	"podwire.dev/services/nodeagent/internal/runtime"
	"podwire.dev/services/nodeagent/internal/runtime/podspec"
)

// Driver runs containers: package runtime, whose Driver says what each method does.
type Driver interface {
	CreateSandbox(ctx context.Context, pod podspec.Pod) (runtime.Sandbox, error)
	StartContainers(ctx context.Context, pod podspec.Pod, net runtime.Attachment) error
	// Replace gives the containers of a Pod that runs the images of pod; those whose image changed are started again.
	Replace(ctx context.Context, pod podspec.Pod) error
	Stop(ctx context.Context, podUID string, grace time.Duration) error
	RemoveSandbox(ctx context.Context, podUID string) error
	List() []runtime.PodInfo
	State(podUID string) (runtime.PodState, error)
}

// Links connects pods: package link.
type Links interface {
	Attach(p link.Pod) (link.Attachment, error)
	Detach(uid string) error
	List() ([]link.Attachment, error)
}

// Dataplane holds the node's tables in the kernel. It learns of pods that an earlier agent attached from the links
// themselves; Prepare is called for them again all the same.
type Dataplane interface {
	// Prepare returns when the gate's entry and the policy of the pod are committed in this node's kernel, and not
	// before: it waits for the policy row of the pod's UID until ctx ends, and then says in its error what is missing.
	// Again for a pod that is prepared it changes nothing.
	Prepare(ctx context.Context, a plan.Attachment) error
	// Remove returns when nothing in the kernel's tables names the pod. A pod that is not there is no error.
	Remove(ctx context.Context, uid string) error
}

// Addresses gives addresses: package addresses.
type Addresses interface {
	// Allocate gives one address of each family of the cluster, the same to the same pod. Exhausted and Unavailable pass
	// by themselves.
	Allocate(ctx context.Context, uid string) ([]netip.Addr, error)
	// Release puts the pod's addresses into quarantine; removal is the revision at which the pod was gone, 0 while it is
	// not known, and may be told by a later call.
	Release(ctx context.Context, uid string, removal int64) error
	// Unresolved are the pods whose addresses wait for a revision.
	Unresolved() []string
}

// Ref names one incarnation of a Pod.
type Ref struct{ Namespace, Name, UID string }

// String is "namespace/name".
func (r Ref) String() string { return r.Namespace + "/" + r.Name }

// Reporter is cluster's PodService.
type Reporter interface {
	// UpdateStatus stores the status of the Pod with this UID, and returns the revision at which it is stored. NotFound
	// says that the Pod is gone.
	UpdateStatus(ctx context.Context, namespace, name, uid string, status *objectv1.PodStatus) (revision int64, err error)
	// Delete removes the Pod with this UID for good (grace period 0), and returns the revision of the removal. NotFound
	// says that it is gone already.
	Delete(ctx context.Context, namespace, name, uid string) (revision int64, err error)
}

// Clock is the time, which tests set.
type Clock interface {
	Now() time.Time
	After(d time.Duration) <-chan time.Time
}

type machineClock struct{}

func (machineClock) Now() time.Time                         { return time.Now() }
func (machineClock) After(d time.Duration) <-chan time.Time { return time.After(d) }
