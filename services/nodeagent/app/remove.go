package app

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"podwire.dev/internal/daemon"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/fabric"
	"podwire.dev/internal/rpc"
	"podwire.dev/services/nodeagent/internal/kernel/announce"
	"podwire.dev/services/nodeagent/internal/kernel/host"
	"podwire.dev/services/nodeagent/internal/kernel/link"
	"podwire.dev/services/nodeagent/internal/kernel/nft"
)

// removeMain is the command `remove`.
func removeMain(args []string, stderr io.Writer) int {
	flags := flag.NewFlagSet(Name+" remove", flag.ContinueOnError)
	flags.SetOutput(stderr)
	path := flags.String("config", "", "the YAML `FILE` that configures the agent")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	if *path == "" || flags.NArg() > 0 {
		fmt.Fprintf(stderr, "usage: %s remove --config FILE\n", Name)
		return 2
	}
	cfg, err := daemon.Load[Config](*path)
	if err == nil {
		err = remove(cfg)
	}
	if err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", Name, err)
		return 1
	}
	return 0
}

// answerTimeout is how long an agent gets to say that it runs.
const answerTimeout = 2 * time.Second

// remove gives the host back as it was before the agent: pod links, announced addresses, the fabric, the nftables table
// and the host's settings, in this order, so that the gate is the last thing to go. Each step is tried, also where one
// before it failed; what is gone already is no error. An agent that runs is an error; pods that run lose their network.
func remove(cfg Config) error {
	s, violations := cfg.parse()
	if err := errs.InvalidFields("configuration", violations); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), answerTimeout)
	defer cancel()
	if rpc.Healthcheck(ctx, Name, cfg.Common) == nil {
		return errs.New(errs.Conflict, "the agent of node %s runs; stop it first", s.Node)
	}
	f, err := fabric.Open(fabric.Config{Self: s.Node, Underlay: s.underlay[0], Port: s.VXLANPort})
	if err != nil {
		return err
	}
	defer f.Close()
	underlay, err := f.FindUnderlay()
	if err != nil {
		return err
	}
	return errors.Join(removeLinks(), removeAnnounced(underlay.Link), f.Remove(), removeRules(), restoreHost(s, underlay.Link))
}

func removeLinks() error {
	links, err := link.Open()
	if err != nil {
		return err
	}
	defer links.Close()
	live, err := links.List()
	if err != nil {
		return err
	}
	var failed []error
	for _, l := range live {
		failed = append(failed, links.Detach(l.UID))
	}
	return errors.Join(failed...)
}

func removeAnnounced(underlay string) error {
	a, err := announce.Open(announce.Config{Link: underlay})
	if err != nil {
		return err
	}
	return errors.Join(a.Remove(), a.Close())
}

func removeRules() error {
	t, err := nft.Open(0)
	if err != nil {
		return err
	}
	_, err = t.Remove()
	return errors.Join(err, t.Close())
}

func restoreHost(s settings, underlay string) error {
	record := filepath.Join(s.State, fileHost)
	if _, err := os.Stat(s.State); errors.Is(err, os.ErrNotExist) {
		return nil // an agent never ran here
	}
	h, err := host.Open(host.Config{Record: record, Underlay: underlay})
	if err != nil {
		return err
	}
	defer h.Close()
	return h.Restore()
}
