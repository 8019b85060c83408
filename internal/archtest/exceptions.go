package archtest

import "slices"

// exceptions are the places where a rule does not fit, each with the reason. Judge fails one that excuses nothing.
var exceptions = slices.Concat(goroutineExceptions, doorExceptions, otherExceptions)

// Goroutines outside the daemon: either their function waits for their end, or their process has no daemon.
var goroutineExceptions = []Exception{
	{
		Rule:   "goroutines",
		Where:  "cmd/podwire/internal/cli/exec.go#app.execAt",
		Reason: "passes stdin on; a read of a terminal cannot be ended but by the end of the command, which is the process's",
	},
	{
		Rule:   "goroutines",
		Where:  "cmd/podwire/internal/cli/exec.go#app.execOutside",
		Reason: "a namespace is entered on a thread of its own; the function waits for its end",
	},
	{
		Rule:   "goroutines",
		Where:  "cmd/podwire/internal/demo/podwire.go#podwire.start",
		Reason: "waits for a command that runs beside the checks; running.wait receives its end",
	},
	{
		Rule:   "goroutines",
		Where:  "internal/daemon",
		Reason: "the daemon's Go is where every goroutine of a service begins, is named, and is waited for",
	},
	{
		Rule:   "goroutines",
		Where:  "internal/push/hub.go#Hub.Close",
		Reason: "turns a WaitGroup into a channel, so that the wait has a deadline; ends with the streams",
	},
	{
		Rule:   "goroutines",
		Where:  "internal/push/stream.go#Hub.Subscribe",
		Reason: "reads acks beside the handler that sends; ends with the stream, and Hub.Close waits for the group",
	},
	{
		Rule:   "goroutines",
		Where:  "internal/rpc/server.go#Server.Stop",
		Reason: "turns a WaitGroup into a channel, so that the wait has a deadline; Stop waits for it",
	},
	{
		Rule:   "goroutines",
		Where:  "internal/store/election.go#closeWith",
		Reason: "waits for one of two channels on behalf of its caller, who ends it and waits for its end",
	},
	{
		Rule:   "goroutines",
		Where:  "internal/store/etcdkv/etcdkv.go#Engine.KeepAlive",
		Reason: "drains the channel of etcd's client, which would log a warning per answer; ends with the lease",
	},
	{
		Rule:   "goroutines",
		Where:  "internal/store/follow.go#asker.start",
		Reason: "asks beside a watch that blocks; its stop, which the follower always calls, waits for the end",
	},
	{
		Rule:   "goroutines",
		Where:  "services/nodeagent/internal/kernel/link/attach.go#Links.enter",
		Reason: "a namespace is entered on a thread of its own; the function waits for its end",
	},
	{
		Rule:   "goroutines",
		Where:  "services/nodeagent/internal/runtime/stop.go#Process.preStop",
		Reason: "asks beside three other ends of the hook; the function waits for the answer before it returns",
	},
	{
		Rule:   "goroutines",
		Where:  "services/nodeagent/internal/runtime/sandbox.go#makeNetNS",
		Reason: "a namespace is entered on a thread of its own; the function waits for its end",
	},
	{
		Rule:   "goroutines",
		Where:  "services/nodeagent/internal/shim",
		Reason: "runs beside a container in a process without a daemon; what it starts ends with the command it watches",
	},
}

// Doors that one more room may pass.
var doorExceptions = []Exception{
	{
		Rule:   "door-files",
		Where:  "services/nodeagent/internal/dataplane/ids.go",
		Reason: "ids are on disk before the transaction that uses them, so the loop itself writes them",
	},
	{
		Rule:   "door-environment",
		Where:  "internal/telemetry/telemetry.go#exporting",
		Reason: "OpenTelemetry's specification configures its exporter by OTEL_* variables, the only ones that count",
	},
	{
		Rule:   "door-files",
		Where:  "internal/fabric/sysctl",
		Reason: "the kernel has its network settings under /proc/sys only",
	},
	{
		Rule:   "door-files",
		Where:  "internal/pki",
		Reason: "keys and certificates are files, and are replaced without a restart; this is their one writer",
	},
	{
		Rule:   "door-files",
		Where:  "internal/push/journal.go",
		Reason: "the agent's last good state is on disk before it is acked, so that it survives a restart",
	},
	{
		Rule:   "door-files",
		Where:  "internal/push/accepted.go",
		Reason: "what an admin accepted lies beside the journals, so that a restart of the agent does not forget it",
	},
	{
		Rule:   "door-files",
		Where:  "internal/rpc",
		Reason: "makes unix sockets with their mode, removes stale ones, and hands pki's files to TLS",
	},
	{
		Rule:   "door-files",
		Where:  "services/nodeagent/internal/addresses/file.go",
		Reason: "which addresses are in quarantine is on disk before a pod knows its address, so that a crash gives none twice",
	},
	{
		Rule:   "door-files",
		Where:  "services/nodeagent/internal/kernel",
		Reason: "namespaces are opened, and host settings made, through /proc",
	},
	{
		Rule:   "door-files",
		Where:  "services/nodeagent/internal/pods",
		Reason: "what was last reported of a pod outlives the agent, so that a restart takes no endpoint out",
	},
	{
		Rule:   "door-files",
		Where:  "services/nodeagent/internal/probe/http.go#webClient",
		Reason: "reads the file of --ca: a tool that people run in pods and on nodes",
	},
	{
		Rule:   "door-files",
		Where:  "services/nodeagent/internal/probe/resolve.go#tryResolve",
		Reason: "answers as a C library in the pod would, which reads the pod's resolv.conf",
	},
	{
		Rule:   "door-files",
		Where:  "services/nodeagent/internal/runtime",
		Reason: "a pod's directory (logs, resolv.conf, hosts, record of its processes) is what a restarted agent finds",
	},
	{
		Rule:   "door-files",
		Where:  "services/nodeagent/internal/shim",
		Reason: "writes a container's log and record from a process that outlives the agent",
	},
	{
		Rule:   "door-flags",
		Where:  "services/nodeagent/internal/probe/tool.go",
		Reason: "is the probe command in every pod, with a command line of its own",
	},
	{
		Rule:   "door-grpc",
		Where:  "internal/store/etcdkv/etcdkv.go",
		Reason: "etcd's client returns gRPC statuses, which are translated here and go no further",
	},
}

var otherExceptions = []Exception{
	{
		Rule:   "bool-parameters",
		Where:  "services/nodeagent/internal/probe/judge.go#Judge.Observe",
		Reason: "the outcome of a probe is the datum that is observed, not a switch of what the method does",
	},
	{
		Rule:   "no-context-field",
		Where:  "internal/daemon/daemon.go",
		Reason: "the context of the process itself, which the daemon makes, hands to what Go starts, and ends",
	},
	{
		Rule:   "no-context-field",
		Where:  "internal/rpc/intercept.go",
		Reason: "an interceptor changes a stream's context by wrapping grpc.ServerStream, whose Context is a method",
	},
	{
		Rule:   "no-context-field",
		Where:  "internal/rpc/server.go",
		Reason: "a signal that ends when the server begins to stop, from which each stream's context is derived",
	},
	{
		Rule:   "unfinished",
		Where:  "internal/archtest/testdata",
		Reason: "the bad samples of the rule itself",
	},
	{
		Rule:   "words",
		Where:  "internal/archtest/testdata",
		Reason: "the bad samples of the rule itself",
	},
}
