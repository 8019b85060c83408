package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"
)

// partVariable holds a part as JSON: this test binary then plays it, in a pod, on a node or outside, in the place of
// running tests. Pods of image podwire.dev/host see the files of this host, so the binary is there.
const partVariable = "PODWIRE_E2E_PART"

// part is one of its fields.
type part struct {
	// Listen is an address where every TCP client is greeted with its own address.
	Listen string `json:",omitempty"`
	// Echo is a port on which TCP streams and UDP datagrams are sent back as they came.
	Echo int `json:",omitempty"`
	// Ask reads questions from stdin, asks all at once, and prints the replies in the same order.
	Ask *asking `json:",omitempty"`
	// Send is sent to an Echo, and compared with what comes back.
	Send *sending `json:",omitempty"`
	// Load sends requests until the process is ended.
	Load *load `json:",omitempty"`
}

type asking struct{ Timeout time.Duration }

type sending struct {
	Protocol, Target string
	Bytes            int
}

// play plays the part until it is over or the process is told to stop, and returns the exit status.
func play(text string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	var p part
	err := json.Unmarshal([]byte(text), &p)
	switch {
	case err != nil:
	case p.Listen != "":
		err = greet(ctx, p.Listen)
	case p.Echo != 0:
		err = echo(ctx, p.Echo)
	case p.Ask != nil:
		err = p.Ask.all(ctx, os.Stdin, os.Stdout)
	case p.Send != nil:
		err = p.Send.run(ctx)
	case p.Load != nil:
		err = p.Load.run(ctx)
	default:
		err = errors.New("a part without a role")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// greet accepts TCP on addr.
func greet(ctx context.Context, addr string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { _ = l.Close() })
	fmt.Println("listening")
	for {
		c, err := l.Accept()
		if err != nil {
			return nil
		}
		host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		fmt.Fprintf(c, "listener %s\n", host)
		_ = c.Close()
	}
}

func echo(ctx context.Context, port int) error {
	addr := fmt.Sprintf(":%d", port)
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	d, err := net.ListenPacket("udp", addr)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() {
		_ = l.Close()
		_ = d.Close()
	})
	var all sync.WaitGroup
	all.Go(func() {
		buf := make([]byte, 64<<10)
		for {
			n, from, err := d.ReadFrom(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = d.WriteTo(buf[:n], from)
			}
		}
	})
	for {
		c, err := l.Accept()
		if err != nil {
			break
		}
		all.Go(func() {
			defer c.Close()
			stop := context.AfterFunc(ctx, func() { _ = c.Close() })
			defer stop()
			_, _ = io.Copy(c, c)
		})
	}
	all.Wait()
	return nil
}

// question is one probe.
type question struct{ Protocol, Target string }

// reply is what a probe came to: the line that was answered, or how it failed.
type reply struct {
	Line    string `json:",omitempty"`
	Failure string `json:",omitempty"`
}

// The failures of a reply. Others are in the words of the network.
const (
	silence  = "silence"
	rejected = "refused"
)

// reached says whether something answered.
func (r reply) reached() bool { return r.Failure == "" }

// who is the pod that answered.
func (r reply) who() string {
	name, _, _ := strings.Cut(r.Line, " ")
	return name
}

func (r reply) String() string {
	if r.reached() {
		return "answer " + r.Line
	}
	return r.Failure
}

// atOnce bounds how many questions wait for their answers at the same time.
const atOnce = 400

func (a asking) all(ctx context.Context, in io.Reader, out io.Writer) error {
	var questions []question
	if err := json.NewDecoder(in).Decode(&questions); err != nil {
		return err
	}
	replies := make([]reply, len(questions))
	slots := make(chan struct{}, atOnce)
	var all sync.WaitGroup
	for n, q := range questions {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			replies[n] = ask(ctx, q, a.Timeout)
		})
	}
	all.Wait()
	return json.NewEncoder(out).Encode(replies)
}

// line is what is asked; no protocol takes it for its own.
const line = "podwire e2e\n"

// ask asks once, from a port of its own.
func ask(ctx context.Context, q question, timeout time.Duration) reply {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, q.Protocol, q.Target)
	if err != nil {
		return failure(err)
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	_ = c.SetDeadline(deadline)
	return exchange(c, bufio.NewReader(c))
}

// exchange sends a line and reads one.
func exchange(c net.Conn, answers *bufio.Reader) reply {
	if _, err := io.WriteString(c, line); err != nil {
		return failure(err)
	}
	text, err := answers.ReadString('\n')
	if err != nil {
		return failure(err)
	}
	return reply{Line: strings.TrimSpace(text)}
}

func failure(err error) reply {
	var timeout net.Error
	switch {
	case errors.As(err, &timeout) && timeout.Timeout():
		return reply{Failure: silence}
	case errors.Is(err, syscall.ECONNREFUSED):
		return reply{Failure: rejected}
	}
	return reply{Failure: err.Error()}
}

// run sends and compares. The stream is read while it is written: neither side keeps all of it.
func (s sending) run(ctx context.Context) error {
	c, err := new(net.Dialer).DialContext(ctx, s.Protocol, s.Target)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	sent := make([]byte, s.Bytes)
	for n := range sent {
		sent[n] = byte(n * 31 >> 3)
	}
	back := make([]byte, 0, s.Bytes)
	if s.Protocol == "udp" {
		if _, err := c.Write(sent); err != nil {
			return err
		}
		back = back[:s.Bytes]
		n, err := c.Read(back)
		if errors.Is(err, syscall.EMSGSIZE) {
			// The way to another node is narrower than the client's link: IPv6 tells it so, and it sends smaller fragments.
			if _, err = c.Write(sent); err == nil {
				n, err = c.Read(back)
			}
		}
		if err != nil {
			return err
		}
		back = back[:n]
	} else if back, err = s.stream(c, sent, back); err != nil {
		return err
	}
	if !bytes.Equal(sent, back) {
		return fmt.Errorf("%d bytes came back, not the %d that were sent", len(back), len(sent))
	}
	fmt.Printf("%d bytes intact\n", len(back))
	return nil
}

func (s sending) stream(c net.Conn, sent, back []byte) ([]byte, error) {
	written := make(chan error, 1)
	var writer sync.WaitGroup
	writer.Go(func() {
		_, err := c.Write(sent)
		written <- err
	})
	defer writer.Wait()
	back = back[:s.Bytes]
	n, err := io.ReadFull(c, back)
	if err != nil {
		_ = c.Close()
		return back[:n], fmt.Errorf("after %d bytes: %w", n, err)
	}
	return back, <-written
}
