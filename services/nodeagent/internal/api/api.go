// Package api serves podwire.nodeagent.v1.AgentService: it reaches into one node, for people and their tools.
//
// In: RPCs. Out: commands in containers and on the node, logs, and what the [Inspector] says about the node's tables.
// Invariants: who may call what is internal/rpc's table; a command lives no longer than its call; output is passed on as
// it comes, in pieces of bounded size, and a slow reader slows its own command only. The package decides nothing about
// pods, and must not be called by a service.
package api

import (
	"context"
	"io"
	"log/slog"
	"sync"

	"podwire.dev/internal/errs"
	nodeagentv1 "podwire.dev/proto/podwire/nodeagent/v1"
	"podwire.dev/services/nodeagent/internal/runtime"
)

// Pods knows which Pods are on this node.
type Pods interface {
	// Find gives the UID of the Pod of a name; NotFound if it is not on this node.
	Find(namespace, name string) (uid string, err error)
}

// Runtime runs commands and keeps logs: package runtime, whose Driver says what each method does.
type Runtime interface {
	Exec(ctx context.Context, podUID string, req runtime.ExecRequest) (exitCode int, err error)
	HostExec(ctx context.Context, req runtime.ExecRequest) (exitCode int, err error)
	Logs(ctx context.Context, podUID string, req runtime.LogRequest, w io.Writer) error
}

// Inspector answers about the node and its tables. Its methods are those of the service.
type Inspector interface {
	Explain(ctx context.Context, req *nodeagentv1.ExplainRequest) (*nodeagentv1.ExplainResponse, error)
	Status(ctx context.Context, req *nodeagentv1.StatusRequest) (*nodeagentv1.StatusResponse, error)
	Accept(ctx context.Context, req *nodeagentv1.AcceptRequest) (*nodeagentv1.AcceptResponse, error)
}

// Config is what the Agent needs.
type Config struct {
	Node      string
	Pods      Pods
	Runtime   Runtime
	Inspector Inspector
	// Go starts a goroutine that its owner waits for; daemon.Daemon has it.
	Go  func(name string, fn func(context.Context) error)
	Log *slog.Logger
}

// Agent is the service.
type Agent struct {
	nodeagentv1.UnimplementedAgentServiceServer
	cfg Config
}

// New makes the service; it starts nothing.
func New(cfg Config) *Agent {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Agent{cfg: cfg}
}

// Explain follows one packet through the node's tables.
func (a *Agent) Explain(ctx context.Context, req *nodeagentv1.ExplainRequest) (*nodeagentv1.ExplainResponse, error) {
	return a.cfg.Inspector.Explain(ctx, req)
}

// Status tells what the node holds.
func (a *Agent) Status(ctx context.Context, req *nodeagentv1.StatusRequest) (*nodeagentv1.StatusResponse, error) {
	return a.cfg.Inspector.Status(ctx, req)
}

// Accept makes a frozen node take the next complete snapshot.
func (a *Agent) Accept(ctx context.Context, req *nodeagentv1.AcceptRequest) (*nodeagentv1.AcceptResponse, error) {
	return a.cfg.Inspector.Accept(ctx, req)
}

// piece is the most that one message carries, in bytes.
const piece = 64 << 10

// sender passes output on, in the order of the writes.
type sender struct {
	mu   *sync.Mutex
	send func([]byte) error
}

// Write sends p in pieces. gRPC is done with a message's bytes when Send returns.
func (s sender) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for sent := 0; sent < len(p); sent += piece {
		if err := s.send(p[sent:min(sent+piece, len(p))]); err != nil {
			return sent, err
		}
	}
	return len(p), nil
}

// required are the violations of fields that must not be empty, given as pairs of field and value.
func required(pairs ...string) []errs.Violation {
	var bad []errs.Violation
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] == "" {
			bad = append(bad, errs.Violation{Field: pairs[i], Rule: "is required"})
		}
	}
	return bad
}
