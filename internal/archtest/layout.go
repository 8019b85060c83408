package archtest

// Layout is the plan of the tree that the rules about rooms read.
type Layout struct {
	// Module is the module's path.
	Module string
	// Pure rooms compute: no clock, no network, no kernel, no randomness.
	Pure []string
	// NotBuilt are the pure rooms that a later issue brings. One that exists must leave this list.
	NotBuilt []string
	// PlainData are packages of messages that pure rooms may read.
	PlainData []string
	// Doors are the outside things and the rooms that may touch them.
	Doors []Door
	// AppUsers may import a service's app besides that service's own main.
	AppUsers []string
	// StampFile names the variable that the build sets to the version, as "… := package.Variable".
	StampFile string
}

// Door is one outside thing and the rooms through which it is reached. Each door is a rule of its own.
type Door struct {
	// Rule is the name of its rule, for exceptions and samples.
	Rule string
	// Name of the outside thing, in the singular or with a collective noun.
	Name string
	// Imports are import paths, each with everything below it.
	Imports []string
	// Uses are names of packages ("os": {"Getenv"}) where the package as a whole is free.
	Uses map[string][]string
	// Rooms may pass; * stands for one path element.
	Rooms []string
}

// podwire is the plan of this repository: architecture.md section 2, house-style "Rooms and who may enter".
var podwire = Layout{
	Module: "podwire.dev",
	Pure: []string{
		"internal/errs",
		"internal/names",
		"internal/nodestate",
		"internal/resolvconf",
		"services/cluster/internal/sched",
		"services/dns/internal/zone",
		"services/ingress/internal/route",
		"services/ipam/internal/pool",
		"services/nodeagent/internal/judge",
		"services/nodeagent/internal/plan",
		"services/nodeagent/internal/tracer",
		"services/policy/internal/ruleset",
		"services/svcproxy/internal/lb",
	},
	NotBuilt: nil,
	PlainData: []string{
		"podwire.dev/proto/podwire/object/v1",
		"google.golang.org/protobuf/types/known",
	},
	AppUsers:  []string{"cmd/podwire", "test/stack"},
	StampFile: "Makefile",
	Doors:     doors,
}

var doors = []Door{
	{
		Rule:    "door-etcd-client",
		Name:    "etcd's client",
		Imports: []string{"go.etcd.io/etcd/client", "go.etcd.io/etcd/api"},
		Rooms:   []string{"internal/store"},
	},
	{
		Rule:    "door-etcd-server",
		Name:    "etcd's server",
		Imports: []string{"go.etcd.io/etcd/server"},
		Rooms:   []string{"cmd/podwire", "internal/store"},
	},
	{
		Rule: "door-kernel",
		Name: "the kernel's network",
		Imports: []string{
			"github.com/google/nftables",
			"github.com/mdlayher/netlink",
			"github.com/vishvananda/netlink",
			"github.com/vishvananda/netns",
			"podwire.dev/internal/fabric/rtnl",
			"podwire.dev/internal/fabric/sysctl",
		},
		Uses: map[string][]string{
			"golang.org/x/sys/unix": {"AF_NETLINK", "AF_PACKET", "SockaddrLinklayer", "SockaddrNetlink"},
		},
		Rooms: []string{
			"internal/fabric",
			"services/nodeagent/internal/kernel",
			"cmd/podwire/internal/lab",
			"internal/testnet",
		},
	},
	{
		Rule:    "door-grpc",
		Name:    "gRPC",
		Imports: []string{"google.golang.org/grpc"},
		Rooms: []string{
			"internal/rpc",
			"internal/push",
			"services/*/internal/api",
			"cmd/podwire/internal/session",
			"cmd/podwire/internal/cli",
		},
	},
	{
		Rule:    "door-flags",
		Name:    "the command line",
		Imports: []string{"flag", "github.com/spf13/cobra", "github.com/spf13/pflag"},
		Rooms:   []string{"cmd", "internal/daemon", "services/*/app"},
	},
	{
		Rule: "door-environment",
		Name: "the environment",
		Uses: map[string][]string{
			"os": {"Getenv", "LookupEnv", "Environ", "ExpandEnv", "Setenv", "Unsetenv", "Clearenv"},
		},
		Rooms: []string{"cmd", "internal/daemon", "services/*/app"},
	},
	{
		Rule: "door-files",
		Name: "the file system",
		Uses: map[string][]string{
			"os": {
				"Chmod", "Chown", "Create", "CreateTemp", "DirFS", "Link", "Lstat", "Mkdir", "MkdirAll", "MkdirTemp", "Open",
				"OpenFile", "OpenRoot", "ReadDir", "ReadFile", "Readlink", "Remove", "RemoveAll", "Rename", "Stat", "Symlink",
				"Truncate", "WriteFile",
			},
		},
		Rooms: []string{"cmd", "internal/daemon", "services/*/app"},
	},
	{
		Rule:    "door-processes",
		Name:    "starting processes",
		Imports: []string{"os/exec"},
		Rooms:   []string{"cmd/podwire", "services/nodeagent/internal/runtime", "services/nodeagent/internal/shim", "internal/testnet"},
	},
}
