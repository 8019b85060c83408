// Package podspec holds a Pod as the runtime needs it: parsed once from the
// Kubernetes object, with every documented default filled in.
//
// In: an objectv1.Pod (FromObject). Out: plain values without pointers into the
// object. Invariants: the package is pure; a value of type Pod is never changed
// after it was made. It must not decide anything about images, processes or time.
package podspec

import (
	"net/netip"
	"time"
)

// RestartPolicy is spec.restartPolicy.
type RestartPolicy string

// The restart policies of Kubernetes.
const (
	RestartAlways    RestartPolicy = "Always"
	RestartOnFailure RestartPolicy = "OnFailure"
	RestartNever     RestartPolicy = "Never"
)

// Defaults that Kubernetes documents for the fields below.
const (
	DefaultGracePeriod   = 30 * time.Second
	DefaultProbePeriod   = 10 * time.Second
	DefaultProbeTimeout  = time.Second
	DefaultFailThreshold = 3
)

// Pod is what the runtime needs to know of a Pod.
type Pod struct {
	Namespace, Name, UID string
	Labels, Annotations  map[string]string
	// Hostname and Subdomain are spec.hostname and spec.subdomain; both may be empty.
	Hostname, Subdomain string
	SetHostnameAsFQDN   bool
	NodeName            string
	ServiceAccountName  string
	HostNetwork         bool
	RestartPolicy       RestartPolicy
	// GracePeriod is spec.terminationGracePeriodSeconds.
	GracePeriod time.Duration
	// ActiveDeadline is spec.activeDeadlineSeconds; 0 for none.
	ActiveDeadline time.Duration
	DNS            DNS
	HostAliases    []HostAlias
	ReadinessGates []string
	Init           []Container
	Containers     []Container
}

// Ref is "namespace/name", the noun of messages about the Pod.
func (p Pod) Ref() string { return p.Namespace + "/" + p.Name }

// DNS is spec.dnsPolicy and spec.dnsConfig.
type DNS struct {
	// Policy is ClusterFirst, ClusterFirstWithHostNet, Default or None.
	Policy      string
	Nameservers []netip.Addr
	Searches    []string
	// Options are as they stand in resolv.conf: "ndots:2", "edns0".
	Options []string
}

// HostAlias is one entry of spec.hostAliases.
type HostAlias struct {
	IP        netip.Addr
	Hostnames []string
}

// Container is one container or init container.
type Container struct {
	Name, Image string
	// Command replaces the image's entry point, Args its arguments. Both still hold
	// $(VAR) references; Expand resolves them.
	Command, Args []string
	WorkingDir    string
	Env           []EnvVar
	Ports         []Port
	Startup       *Probe
	Readiness     *Probe
	Liveness      *Probe
	PostStart     *Handler
	PreStop       *Handler
	// Restart is the container's own restart policy: RestartAlways on an init
	// container makes it a sidecar, empty means the Pod's.
	Restart RestartPolicy
	// StopSignal is lifecycle.stopSignal ("SIGUSR1"); empty means SIGTERM.
	StopSignal string
	// User is who the container runs as.
	User User
	// Problem says which part of the container cannot be honoured, so that it must not
	// start; empty if all can.
	Problem string
}

// Sidecar says whether an init container keeps running beside the others.
func (c Container) Sidecar() bool { return c.Restart == RestartAlways }

// User is the part of the security contexts (Pod's and container's merged, the
// container's first) that the process driver honours.
type User struct {
	// UID and GID are -1 where nothing is asked for.
	UID, GID int
	// Groups are spec.securityContext.supplementalGroups and fsGroup.
	Groups []int
	// NonRoot is runAsNonRoot: the container must not start as user 0.
	NonRoot bool
}

// EnvVar is one variable. FieldPath, if set, names the Pod field that gives the value.
type EnvVar struct {
	Name, Value, FieldPath string
}

// Port is one containerPort.
type Port struct {
	Name string
	// Protocol is TCP, UDP or SCTP.
	Protocol string
	Number   uint16
	HostPort uint16
}

// Handler is one action of a probe or a lifecycle hook; exactly one field is set.
type Handler struct {
	Exec  []string
	HTTP  *HTTPGet
	TCP   *TCPSocket
	GRPC  *GRPC
	Sleep time.Duration
}

// HTTPGet is an httpGet action. Port is a number or the name of a containerPort.
type HTTPGet struct {
	Scheme, Host, Port, Path string
	Headers                  []Header
}

// Header is one HTTP request header.
type Header struct{ Name, Value string }

// TCPSocket is a tcpSocket action. An empty Host is the Pod's address.
type TCPSocket struct{ Host, Port string }

// GRPC is a grpc action: grpc.health.v1 Check of Service.
type GRPC struct {
	Port    uint16
	Service string
}

// Probe is a probe with every default filled in.
type Probe struct {
	Handler          Handler
	InitialDelay     time.Duration
	Period           time.Duration
	Timeout          time.Duration
	SuccessThreshold int
	FailureThreshold int
	// GracePeriod replaces the Pod's when this probe kills the container; negative
	// if the Pod's is to be used.
	GracePeriod time.Duration
}
