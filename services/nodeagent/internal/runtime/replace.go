package runtime

import (
	"context"
	"os"
	"path/filepath"
	"slices"

	"podwire.dev/services/nodeagent/internal/runtime/podspec"
)

// Replace gives the containers of a Pod that runs other images; see Driver. A container that has ended for good (an init
// container that is done, for example) stays as it is.
func (d *Process) Replace(_ context.Context, spec podspec.Pod) error {
	p, err := d.pod(spec.UID)
	if err != nil {
		return err
	}
	images := map[string]string{}
	for _, c := range slices.Concat(spec.Init, spec.Containers) {
		images[c.Name] = c.Image
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.containers {
		image, ok := images[c.spec.Name]
		if !ok || image == c.current.Image && c.nextImage == "" {
			continue
		}
		c.nextImage = image
		select {
		case c.replaced <- struct{}{}:
		default:
		}
	}
	return nil
}

// takeImage makes the image that Replace asked for the container's own, and is called between two runs. Only now it goes
// to disk: an agent that dies before has the old run to end still.
func (d *Process) takeImage(ctx context.Context, c *container) {
	c.pod.mu.Lock()
	if c.nextImage == "" {
		c.pod.mu.Unlock()
		return
	}
	c.spec.Image, c.nextImage = c.nextImage, ""
	c.plan = planImage(c.spec, c.kind, d.cfg.Images)
	c.current.Image, c.current.Substituted = c.spec.Image, c.plan.substituted
	c.current.Reason, c.current.Message = reasonCreating, ""
	if c.plan.program == nothing {
		c.current.Reason, c.current.Message = c.plan.reason, c.plan.message
	}
	select {
	case <-c.replaced:
	default:
	}
	c.pod.mu.Unlock()
	// Another image is another program: what it followed on does not count (Kubernetes counts by image, too).
	c.backoff = Backoff{}
	_ = os.Remove(filepath.Join(c.dir, "backoff.json"))
	if err := d.save(c.pod.saved()); err != nil {
		d.cfg.Log.ErrorContext(ctx, "the image of a container is not on disk", "pod", c.pod.spec.Ref(), "container", c.spec.Name, "error", err)
	}
	d.changed(c.pod.spec.UID)
}

// replacing says whether another image is asked for.
func (c *container) replacing() bool {
	c.pod.mu.Lock()
	defer c.pod.mu.Unlock()
	return c.nextImage != ""
}

// specNow is the Pod with the images that its containers have now. The caller holds mu.
func (p *pod) specNow() podspec.Pod {
	out := p.spec
	out.Init, out.Containers = slices.Clone(out.Init), slices.Clone(out.Containers)
	for _, list := range [][]podspec.Container{out.Init, out.Containers} {
		for i := range list {
			for _, c := range p.containers {
				if c.spec.Name == list[i].Name {
					list[i].Image = c.current.Image
				}
			}
		}
	}
	return out
}
