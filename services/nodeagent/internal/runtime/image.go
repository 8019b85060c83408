package runtime

import (
	"fmt"
	"strings"

	"podwire.dev/services/nodeagent/internal/runtime/podspec"
)

// The images that need nothing to pull.
const (
	HostImage = "podwire.dev/host"
	EchoImage = "podwire.dev/echo"
)

// Substitution says what to do with an image that no driver can run.
type Substitution int

// An image that cannot be run keeps its Pod Pending, or EchoImage takes its place.
const (
	SubstituteNever Substitution = iota
	SubstituteImages
)

// Reasons why a container waits, as Kubernetes' clients know them.
const (
	reasonCreating    = "ContainerCreating"
	reasonInitialize  = "PodInitializing"
	reasonCrashLoop   = "CrashLoopBackOff"
	reasonImage       = "ErrImageNeverPull"
	reasonConfig      = "CreateContainerConfigError"
	reasonCreateError = "CreateContainerError"
)

// what a container is run by.
type program int

const (
	nothing program = iota
	hostCommand
	echoServer
	// succeed stands in for an init container, which must end for the Pod to go on.
	succeed
)

// runPlan is what becomes of one container's image and configuration.
type runPlan struct {
	program program
	// substituted is the image that something else stands in for.
	substituted string
	// reason and message say why the program is nothing.
	reason, message string
}

// isImage compares without tag and digest: the built-in images have one version.
func isImage(image, name string) bool {
	rest, ok := strings.CutPrefix(image, name)
	return ok && (rest == "" || rest[0] == ':' || rest[0] == '@')
}

// planImage decides what runs a container.
func planImage(c podspec.Container, initContainer initKind, s Substitution) runPlan {
	switch {
	case isImage(c.Image, EchoImage):
		return runPlan{program: echoServer}
	case isImage(c.Image, HostImage):
		return planHost(c)
	case s == SubstituteImages && initContainer == initStep:
		return runPlan{program: succeed, substituted: c.Image}
	case s == SubstituteImages:
		return runPlan{program: echoServer, substituted: c.Image}
	}
	return runPlan{reason: reasonImage, message: fmt.Sprintf(
		"image %q cannot be run on this node: its runtime has no images of others. Use %s (a command of the node) or %s, or start the agent with --substitute-images",
		c.Image, HostImage, EchoImage)}
}

func planHost(c podspec.Container) runPlan {
	switch {
	case c.Problem != "":
		return runPlan{reason: reasonConfig, message: c.Problem}
	case c.User.NonRoot && c.User.UID <= 0:
		return runPlan{reason: reasonConfig, message: "runAsNonRoot is set and the container would run as root; set runAsUser"}
	case len(c.Command) == 0 && len(c.Args) == 0:
		return runPlan{reason: reasonConfig, message: HostImage + " has no command of its own; set command"}
	}
	return runPlan{program: hostCommand}
}

// initKind tells the containers of a Pod apart.
type initKind int

const (
	regular initKind = iota
	initStep
	sidecar
)

// Note says what a substitution did, empty if there was none.
func (c ContainerState) Note() string {
	if c.Substituted == "" {
		return ""
	}
	return fmt.Sprintf("container %s: %s stands in for image %s (--substitute-images), command and args are ignored", c.Name, EchoImage, c.Substituted)
}
