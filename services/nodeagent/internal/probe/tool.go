// Package probe asks whether something answers, in the two ways that a node needs:
// the tool that people run inside Pods (Main), and the probes of Kubernetes (Judge,
// Run, Ask).
//
// In: a target, or a container's probe. Out: an exit code and what came back, or a
// stream of verdicts. Invariants: the tool's exit codes say what the network did, never
// whether the answer was liked; Judge is pure. The package must not know of Pods'
// lifecycles, services or the store.
package probe

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"
)

// Exit codes of the tool. With --count the worst attempt decides: TimedOut, then
// Refused.
const (
	// Reached: something came back.
	Reached = 0
	// Refused: the network or the peer said no (RST, ICMP unreachable or prohibited, a
	// name that does not exist, a connection that was closed under `hold`).
	Refused = 1
	// TimedOut: nothing came back in time.
	TimedOut = 2
	// NotTried: this host could not even send (an address that is not ours, no file).
	NotTried = 3
	// Usage: the command line makes no sense.
	Usage = 64
)

const usage = `usage:
  probe tcp  HOST:PORT   [options]   connect, send a line, print the answer
  probe udp  HOST:PORT   [options]   send one datagram, print the answer
  probe http URL         [options]   GET, print the body
  probe hold HOST:PORT   [options]   keep one TCP connection, exchange a line each interval
  probe resolve NAME [TYPE] [options]   ask the servers of /etc/resolv.conf by its search list (A and AAAA)
options:
  --timeout 2s     how long to wait for an answer
  --from ADDR      source address, also one that is not this host's
  --count N        attempts, one line each, then a summary (1)
  --interval D     between attempts (200ms)
  --for D          hold: how long; 0 is until interrupted (10s)
  --type TYPE      resolve: A, AAAA, CNAME, SRV, PTR, TXT, NS, MX or SOA; the same as the word TYPE
  --server ADDR    resolve: ask this server, on port 53 or as ADDR:PORT
  --host NAME      http: the Host header, and the name that TLS asks for
  --ca FILE        http: trust the certificates of this file only
  --insecure       http: trust every certificate
  --headers        http: print the status line and the header, too
  --keep-alive     http: with --count, use connections again
exit status: 0 reached, 1 refused, 2 timed out, 3 not tried, 64 usage
resolve refuses with NXDOMAIN (no such name), NODATA (the name has no such record) or the server's own code
`

// options are the command line, parsed.
type options struct {
	command  string
	target   string
	kind     string
	timeout  time.Duration
	from     netip.Addr
	count    int
	interval time.Duration
	hold     time.Duration
	server   netip.AddrPort
	// conf is the resolver configuration that resolve reads.
	conf string
	web  webOptions
}

// parse reads the command line; options may stand anywhere.
func parse(args []string) (options, error) {
	o := options{conf: resolvConf}
	fs := flag.NewFlagSet("probe", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.DurationVar(&o.timeout, "timeout", 2*time.Second, "")
	fs.TextVar(&o.from, "from", netip.Addr{}, "")
	fs.IntVar(&o.count, "count", 1, "")
	fs.DurationVar(&o.interval, "interval", 200*time.Millisecond, "")
	fs.DurationVar(&o.hold, "for", 10*time.Second, "")
	fs.StringVar(&o.kind, "type", "", "")
	server := fs.String("server", "", "")
	fs.StringVar(&o.web.host, "host", "", "")
	fs.StringVar(&o.web.ca, "ca", "", "")
	fs.BoolVar(&o.web.insecure, "insecure", false, "")
	fs.BoolVar(&o.web.headers, "headers", false, "")
	fs.BoolVar(&o.web.keep, "keep-alive", false, "")
	var words []string
	for len(args) > 0 {
		if err := fs.Parse(args); err != nil {
			return o, err
		}
		args = fs.Args()
		if len(args) > 0 {
			words = append(words, args[0])
			args = args[1:]
		}
	}
	if len(words) < 2 {
		return o, errors.New("want a command and a target")
	}
	o.command, o.target = words[0], words[1]
	switch {
	case o.command == "resolve" && len(words) == 3 && o.kind == "":
		o.kind = words[2]
	case len(words) > 2:
		return o, fmt.Errorf("unexpected %q", words[2])
	}
	o.kind = strings.ToUpper(o.kind)
	if *server != "" {
		var err error
		if o.server, err = parseServer(*server); err != nil {
			return o, err
		}
	}
	if o.timeout <= 0 || o.count < 1 || o.interval < 0 || o.hold < 0 {
		return o, errors.New("--timeout and --count must be positive, --interval and --for not negative")
	}
	return o, nil
}

// result is what one attempt came to.
type result struct {
	code int
	// text is what came back, without a final line end.
	text string
	// note says how or why, for people.
	note string
}

// Main runs the tool with args (without "probe" itself) and gives its exit code. What
// came back goes to stdout, everything else to stderr. When ctx ends it stops between
// attempts, with its summary.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := parse(args)
	if errors.Is(err, flag.ErrHelp) || len(args) > 0 && args[0] == "help" {
		fmt.Fprint(stdout, usage)
		return Reached
	}
	attempts := map[string]func(context.Context, options) result{
		"tcp": tryTCP, "udp": tryUDP, "http": newHTTP(o), "resolve": tryResolve,
	}
	attempt := attempts[o.command]
	if err == nil && attempt == nil && o.command != "hold" {
		err = fmt.Errorf("no command %q", o.command)
	}
	if err != nil {
		fmt.Fprintf(stderr, "probe: %v\n%s", err, usage)
		return Usage
	}
	switch {
	case o.command == "hold":
		return hold(ctx, o, stdout, stderr)
	case o.count > 1:
		return repeat(ctx, o, attempt, stdout)
	}
	r := attempt(ctx, o)
	if r.text != "" {
		fmt.Fprintln(stdout, r.text)
	}
	fmt.Fprintf(stderr, "probe: %s %s: %s%s\n", o.command, o.target, verdictText(r.code), suffix(r.note))
	return r.code
}

func suffix(note string) string {
	if note == "" {
		return ""
	}
	return ": " + note
}

func verdictText(code int) string {
	switch code {
	case Reached:
		return "reached"
	case Refused:
		return "refused"
	case TimedOut:
		return "timed out"
	default:
		return "not tried"
	}
}

// repeat makes o.count attempts, one line each, and sums up.
func repeat(ctx context.Context, o options, attempt func(context.Context, options) result, stdout io.Writer) int {
	var counts [NotTried + 1]int
	tick := time.NewTicker(max(o.interval, time.Nanosecond))
	defer tick.Stop()
	for i := 0; i < o.count && ctx.Err() == nil; i++ {
		if i > 0 {
			select {
			case <-tick.C:
			case <-ctx.Done():
				continue
			}
		}
		r := attempt(ctx, o)
		if r.code != Reached && ctx.Err() != nil {
			break // the interruption's doing
		}
		counts[r.code]++
		text := r.text
		if r.code != Reached {
			text = r.note
		}
		fmt.Fprintf(stdout, "%s%s\n", verdictText(r.code), suffix(strings.ReplaceAll(text, "\n", " | ")))
	}
	fmt.Fprintf(stdout, "attempts=%d reached=%d refused=%d timed-out=%d not-tried=%d\n",
		counts[Reached]+counts[Refused]+counts[TimedOut]+counts[NotTried],
		counts[Reached], counts[Refused], counts[TimedOut], counts[NotTried])
	for _, code := range []int{NotTried, TimedOut, Refused} {
		if counts[code] > 0 {
			return code
		}
	}
	return Reached
}
